// Package lvm2 reads and writes LVM2 volume groups on disk: the labels of physical
// volumes, the metadata areas and the metadata text, under the locks of the lvm2
// tools. The lvm2 tools read what the package writes, and the package reads what
// they write. A commit preserves any part of the metadata that the package does not
// understand.
//
// # Changing a volume group
//
// A [Host] says where lvm2 keeps its files on the machine. Host{} is enough where lvm2
// has its default directories, no devices file and no system id.
//
// Take the lock, read, change a clone, and commit it:
//
//	store, err := lvm2.OpenVG(ctx, host, "pool", devices)
//	lock, err := host.LockVG(ctx, "pool", lvm2.Exclusive)
//	defer lock.Unlock()
//	vg, err := store.Read(ctx)
//	next := vg.Clone()
//	err = next.Add(&lvm2.LV{…})
//	err = store.Commit(ctx, next)
//
// A [VG], its PVs and its LVs are immutable once they have been read or committed,
// so any number of goroutines may read them.
//
// # Units
//
// Positions and lengths in a volume group are [Extents], in units of
// VG.ExtentSize. Positions and lengths on a device are [size.Sectors] of 512 bytes
// or [size.Bytes].
//
// # Limits
//
// The package edits linear, striped, snapshot and error segments. It reads segments
// of other types, counts their extents as used, and refuses to change their logical
// volumes. It does not activate logical volumes: it knows nothing about
// device-mapper, and it never runs a program.
package lvm2
