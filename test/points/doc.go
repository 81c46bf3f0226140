// Package points cuts each operation of a pool short once at each point: at each
// call that changes something outside of the process (package point), before it
// and after it, while volumes of the family are written to and read.
//
// At a point the process that has the pool kills itself. For every fourth point
// the machine dies too: the disks answer nothing but errors from that moment on, all
// devices are taken down, and then the disks come back. After that the pool must
// open within 15 s, and no device may be as the former process left it, suspended or
// with a second table, when it is open; none may stay suspended; writers must go on; the
// operation, asked for again, must succeed; all bytes that were acknowledged must
// be there, in volumes and snapshots; nothing may be left that nobody needs, of
// logical volumes, extents and devices; and vgck must be silent.
//
//	make points                           all operations; ends with their numbers
//	make points POINTS=cut,expand         operations whose names begin so
//	make points POINTS=cut-next:17        one point; cut-next:17m with the machine
//	make points POINTS=cut-next:17-40     some points
//
// POINTS_EVERY=5 cuts at every fifth point only, at others each time. POINTS_TIMED=1
// tells the points of each operation, and how long the parts of each case take.
//
// DMSNAP_KERNEL chooses the kernel, as for all tests. Without make, in the kernel:
//
//	POINTS=cut-next:17 go test -v -tags kernel,points -exec "$PWD/hack/testkernel exec" ./test/points
//
// Without POINTS the test takes a sample, for as long as POINTS_FOR says (75s).
//
// Each operation has a least number of points in least_test.go, which grows only:
// a smaller number means that points got lost, or that the operation got cheaper;
// who made it cheaper lowers the number and says so.
package points
