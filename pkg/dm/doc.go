// Package dm is a client of the Linux device-mapper: it creates, changes, watches
// and removes mapped devices through the ioctls of /dev/mapper/control. It needs
// neither libdevmapper nor dmsetup nor udev cookies.
//
// # Devices and tables
//
// A mapped device has a name, optionally a UUID, and two slots for tables. Load
// puts a [Table] into the inactive slot, Resume makes that table the live one:
//
//	c, err := dm.Open()
//	info, err := c.Create("data", "")
//	err = c.Load("data", dm.Table{{Length: 2048, Target: dm.Zero{}}}, false)
//	err = c.Resume("data", dm.UdevPrimarySource)
//	path, err := c.EnsureNode(ctx, "data", info.Device)
//
// A table is a list of segments, each with a typed [Target] such as [Linear],
// [Snapshot] or [Mirror]; a target without a type of its own is [Unknown].
// Tables print and parse in the format of "dmsetup table", and the kernel's
// status lines parse into [SnapshotStatus] and [MirrorStatus]. All lengths and
// offsets are [size.Sectors], units of 512 bytes.
//
// # Concurrency
//
// The methods of [Client] may be called concurrently, also for the same device;
// the kernel serializes the changes. A [Watcher] is for one goroutine. Suspend,
// EnsureNode and the watcher's Wait take a context, because only their waits can
// be interrupted.
//
// # Errors
//
// Every failed ioctl is an [*Error] that names operation, device and errno.
// errors.Is distinguishes the usual reasons: [ErrNotFound], [ErrBusy] and
// [ErrExists]. The kernel explains why it refused a table only in its log
// (dmesg).
//
// # udev
//
// Resume, Remove and Rename emit uevents. Their [Udev] flags travel with the
// event and tell udev's rules how to treat the device. Only EnsureNode and
// RemoveNode touch /dev; they read udev's database to learn when udev is done.
// The package does not use libdevmapper's cookie semaphores: a System V
// semaphore belongs to an IPC namespace, so udev on the host would never
// decrement a container's semaphore.
//
// # Privileges
//
// All calls need CAP_SYS_ADMIN in the initial user namespace. Creating nodes
// also needs CAP_MKNOD.
package dm
