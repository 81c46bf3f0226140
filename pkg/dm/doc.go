// Package dm is a client of the Linux device-mapper: it makes, changes, watches
// and removes mapped devices through the ioctls of /dev/mapper/control, without
// libdevmapper, dmsetup or a udev cookie.
//
// # Devices and tables
//
// A mapped device has a name, optionally a UUID, and two slots for tables. Load
// puts a [Table] into the inactive slot, Resume makes it the live one:
//
//	c, err := dm.Open()
//	info, err := c.Create("data", "")
//	err = c.Load("data", dm.Table{{Length: 2048, Target: dm.Zero{}}}, false)
//	err = c.Resume("data", dm.UdevPrimarySource)
//	path, err := c.EnsureNode(ctx, "data", info.Device)
//
// A table is a list of segments, each with a typed [Target] such as [Linear],
// [Snapshot] or [Mirror]; targets this package has no type for are [Unknown].
// Tables print and parse in the form of dmsetup table, and the kernel's status
// lines parse into [SnapshotStatus] and [MirrorStatus].
//
// # Errors
//
// Every failed ioctl is an [*Error] that names operation, device and errno.
// [ErrNotFound], [ErrBusy] and [ErrExists] tell the usual reasons apart with
// errors.Is. Why the kernel refused a table it tells in its log only.
//
// # udev
//
// Resume, Remove and Rename emit uevents. Their [Udev] flags travel with the
// event and tell udev's rules how to treat the device. No ioctl method touches
// /dev: EnsureNode and RemoveNode do, and they wait for udev through its
// database. The cookie semaphores of libdevmapper are not used, because a
// System V semaphore belongs to an IPC namespace: in a container nobody would
// ever decrement it.
//
// # Privileges
//
// All calls need CAP_SYS_ADMIN in the initial user namespace, and making nodes
// needs CAP_MKNOD.
package dm
