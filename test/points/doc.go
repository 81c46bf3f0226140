// Package points cuts each operation of a pool once at each of its points:
// before and after each call that changes anything outside of the process
// (package point). Meanwhile volumes of the family are written and read.
//
// At a point the process that has the pool kills itself. At every fourth point
// the machine dies too: from that moment all I/O on the disks fails, all
// devices are removed, and then the disks come back.
//
// After the cut the following must hold:
//   - The pool opens within 15 s.
//   - Then no device is as the killed process left it, suspended or with a second table.
//   - No device stays suspended.
//   - Writers continue.
//   - The operation succeeds when it is repeated.
//   - All acknowledged bytes are there, in volumes and snapshots.
//   - No logical volume, extent or device is left that nobody needs.
//   - vgck prints nothing.
//
// These commands run it:
//
//	make points                           all operations; prints the totals
//	make points POINTS=cut,expand         operations whose names begin with these words
//	make points POINTS=cut-next:17        one point; cut-next:17m also ends the machine
//	make points POINTS=cut-next:17-40     a range of points
//
// POINTS_EVERY=5 cuts only at every fifth point, and at others in the next run.
// POINTS_TIMED=1 prints the points of each operation, and how long the parts of
// each case take.
//
// DMSNAP_KERNEL chooses the kernel, as for all tests. Without make, on a test
// kernel:
//
//	POINTS=cut-next:17 go test -v -tags kernel,points -exec "$PWD/hack/testkernel exec" ./test/points
//
// Without POINTS the test takes a sample, for as long as POINTS_FOR says (75s).
//
// least_test.go has the least number of points of each operation. These numbers
// only grow. A smaller number means that points were lost, or that the
// operation became cheaper. A change that makes an operation cheaper lowers the
// number and says so.
package points
