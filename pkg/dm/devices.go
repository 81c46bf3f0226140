package dm

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Udev is a set of flags that a uevent carries to udev's device-mapper rules, in
// the high 16 bits of the cookie. The bits 0x100 to 0x8000 belong to the
// subsystem that owns the device, such as LVM. For an event without flags, udev
// does not know who caused it, and treats the device as at the previous event.
type Udev uint16

// Flags for udev's rules: DM_UDEV_*_FLAG of libdevmapper.h.
const (
	UdevDisableDM        Udev = 1 << iota // no /dev/mapper link
	UdevDisableSubsystem                  // no links of the subsystem, such as /dev/VG/LV
	UdevDisableDisk                       // no /dev/disk links, no scan for file systems
	UdevDisableOther                      // no other rules
	UdevLowPriority                       // other devices' /dev/disk links win over this device's
	UdevDisableFallback                   // libdevmapper creates no nodes itself
	UdevPrimarySource                     // the event comes from the device's owner
)

func (u Udev) cookie() uint32 { return uint32(u) << 16 }

// Info is the state of a device.
type Info struct {
	Name, UUID      string
	Device          Device
	OpenCount       int    // mounts, processes and other devices' live or loaded tables
	EventNr         uint32 // counts the device's events, see Watcher
	Targets         int    // segments of the live table
	Suspended       bool
	ReadOnly        bool
	Live            bool // has a live table
	Loaded          bool // has a table in the inactive slot
	DeferredRemove  bool // the kernel removes the device when its last user closes it
	InternalSuspend bool // suspended by the kernel for its own purposes
}

// Create creates a device without a table. The UUID may be empty.
//
// Errors: ErrExists if another device has the name or the UUID.
func (c *Client) Create(name, uuid string) (Info, error) {
	if err := checkName(name); err != nil {
		return Info{}, &Error{opCreate.name, name, err}
	}
	rep, err := c.call(context.Background(), opCreate, request{name: name, uuid: uuid})
	return rep.info, err
}

// checkName rejects names for new devices that all kernels refuse, and names
// that only some kernels refuse but that would clash in /dev/mapper.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("name is empty")
	case strings.Contains(name, "/"):
		return errors.New("name has a slash")
	case name == "control" || name == "." || name == "..":
		return errors.New("name is reserved")
	}
	return nil
}

// Load puts t into the device's inactive slot and replaces a table that is
// there. The table takes effect at the next Resume. With ro, the device becomes
// read-only at that moment.
func (c *Client) Load(name string, t Table, ro bool) error {
	data, err := encodeTable(t)
	if err != nil {
		return &Error{opLoad.name, name, err}
	}
	r := request{name: name, targets: uint32(len(t)), data: data}
	if ro {
		r.flags |= flagReadOnly
	}
	_, err = c.call(context.Background(), opLoad, r)
	return err
}

// Clear empties the device's inactive slot.
func (c *Client) Clear(name string) error {
	_, err := c.call(context.Background(), opClear, request{name: name})
	return err
}

// SuspendOptions choose what Suspend does before it holds back I/O. The zero
// value freezes a mounted file system and waits until all I/O is complete.
type SuspendOptions struct {
	SkipLockFS bool // do not freeze the file system
	NoFlush    bool // targets that can may requeue I/O in flight instead of completing it
	Running    bool // the caller knows that the device is not suspended, and that nobody else suspends it
}

// Suspend completes the I/O in flight and holds back new I/O until Resume.
// Suspending a suspended device does nothing.
//
// While Suspend waits for I/O in flight, the end of ctx interrupts it, and the
// device continues as before. Freezing the file system cannot be interrupted:
// the kernel waits for running writers and for the write-back of dirty data,
// however long they take. If ctx ends during the freeze and the kernel still
// suspends the device, Suspend empties the inactive slot and resumes the device;
// otherwise Resume would swap in a table that the caller has abandoned.
//
// Errors: the cause of ctx's end; ErrNotFound. After an error the device is not
// suspended, unless the error says that it is still suspended.
func (c *Client) Suspend(ctx context.Context, name string, o SuspendOptions) error {
	fail := func(err error) error { return &Error{opSuspend.name, name, err} }
	if ctx.Err() != nil {
		return fail(context.Cause(ctx))
	}
	if !o.Running {
		look := opInfo
		look.name = opSuspend.name
		rep, err := c.call(context.Background(), look, request{name: name})
		if err != nil || rep.info.Suspended {
			return err
		}
	}
	r := request{name: name, flags: flagSuspend}
	if o.SkipLockFS {
		r.flags |= flagSkipLockFS
	}
	if o.NoFlush {
		r.flags |= flagNoFlush
	}
	if _, err := c.call(ctx, opSuspend, r); err != nil || ctx.Err() == nil {
		return err
	}
	err := c.Clear(name)
	if err == nil {
		err = c.Resume(name, 0)
	}
	if err != nil {
		return fail(fmt.Errorf("%w; the kernel suspended the device after that, and it is still suspended: %w", context.Cause(ctx), err))
	}
	return fail(context.Cause(ctx))
}

// Resume makes a loaded table the live table and lets I/O continue. The kernel
// suspends a running device for the swap, with freeze and flush, for as long as
// that takes: call Suspend first to bound the wait. Resuming a running device
// without a loaded table does nothing.
//
// If the kernel refuses the table, it drops the table and leaves the device
// suspended. Resume then resumes the device with its previous table.
//
// Errors: ErrNotFound. After an error a device that has a live table is not
// suspended, unless the error says that it is still suspended.
func (c *Client) Resume(name string, udev Udev) error {
	resume := func() error {
		_, err := c.call(context.Background(), opResume, request{name: name, cookie: udev.cookie()})
		return err
	}
	err := resume()
	if err == nil || errors.Is(err, ErrNotFound) {
		return err
	}
	info, failed := c.Info(name)
	if failed == nil && (!info.Suspended || !info.Live) || errors.Is(failed, ErrNotFound) {
		return err
	}
	if failed == nil && info.Loaded {
		failed = c.Clear(name)
	}
	if failed == nil {
		failed = resume()
	}
	if failed != nil {
		return fmt.Errorf("%w; the device is still suspended: %w", err, failed)
	}
	return err
}

// Remove removes the device and its tables. It never defers the removal of an
// open device to the last close.
//
// Errors: ErrNotFound; ErrBusy if the device is open, which leaves it unchanged.
func (c *Client) Remove(name string, udev Udev) error {
	_, err := c.call(context.Background(), opRemove, request{name: name, cookie: udev.cookie()})
	return err
}

// Rename changes the device's name from old to new.
//
// Errors: ErrNotFound; ErrExists if another device has the new name.
func (c *Client) Rename(old, new string, udev Udev) error {
	if err := checkName(new); err != nil {
		return &Error{opRename.name, old, fmt.Errorf("new name %q: %w", new, err)}
	}
	data, err := encodeString(new, nameLen)
	if err != nil {
		return &Error{opRename.name, old, fmt.Errorf("new name %q: %w", new, err)}
	}
	return c.whileLoaded(old, new, func() error {
		_, err := c.call(context.Background(), opRename, request{name: old, cookie: udev.cookie(), data: data})
		return err
	})
}

// SetUUID gives a UUID to a device that has none.
//
// Errors: ErrNotFound; ErrExists if another device has the UUID.
func (c *Client) SetUUID(name, uuid string) error {
	data, err := encodeString(uuid, uuidLen)
	if uuid == "" {
		err = errors.New("is empty")
	}
	if err != nil {
		return &Error{opSetUUID.name, name, fmt.Errorf("UUID %q: %w", uuid, err)}
	}
	return c.whileLoaded(name, name, func() error {
		_, err := c.call(context.Background(), opSetUUID, request{name: name, flags: flagUUID, data: data})
		return err
	})
}

// whileLoaded runs change, which gives the device called before a name or a UUID, while the
// device has a loaded table. If change succeeds, the device is called after.
//
// Kernels from 5.15 to 7.1 with CONFIG_IMA keep a record of the live and of the loaded table.
// A clear makes both pointers point to the live table's record, which change frees. The next
// load or removal frees it again. A load separates the pointers.
//
// The loaded table is a copy of the live table, so that it changes nothing if this process
// ends before it drops the copy. If the kernel refuses the copy, for example because a disk
// is gone, change runs without a loaded table.
func (c *Client) whileLoaded(before, after string, change func() error) error {
	info, live, err := c.Look(before)
	if err != nil || !info.Live || info.Loaded || c.Load(before, live, info.ReadOnly) != nil {
		return change()
	}
	if err = change(); err != nil {
		after = before
	}
	return errors.Join(err, c.Clear(after))
}
