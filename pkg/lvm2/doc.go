// Package lvm2 reads and writes LVM2 volume groups on disk: physical volume
// labels, metadata areas, the metadata text, and the locks that the lvm2 tools
// take around them. What it writes the lvm2 tools read, and the other way round;
// nothing of a volume group that this package does not know is lost by a commit.
//
// A change of a volume group goes like this:
//
//	store, err := lvm2.OpenVG(ctx, host, "pool", devices)
//	lock, err := host.LockVG(ctx, "pool", lvm2.Exclusive)
//	defer lock.Unlock()
//	vg, err := store.Read(ctx)
//	next := vg.Clone()
//	err = next.Add(&lvm2.LV{…})
//	err = store.Commit(ctx, next)
//
// The package knows neither device-mapper nor what the volumes are used for, and
// it never runs a program.
package lvm2
