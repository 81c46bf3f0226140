package dm

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Info returns the state of the device with the name.
//
// Errors: ErrNotFound.
func (c *Client) Info(name string) (Info, error) { return c.info(request{name: name}) }

// InfoByUUID returns the state of the device with the UUID.
//
// Errors: ErrNotFound.
func (c *Client) InfoByUUID(uuid string) (Info, error) { return c.info(request{uuid: uuid}) }

// InfoByDevice returns the state of the device with the number.
//
// Errors: ErrNotFound, also if d is not a mapped device.
func (c *Client) InfoByDevice(d Device) (Info, error) { return c.info(request{dev: d}) }

func (c *Client) info(r request) (Info, error) {
	rep, err := c.call(context.Background(), opInfo, r)
	return rep.info, err
}

// Table returns the live table, which is empty if the device has none.
//
// Errors: ErrNotFound.
func (c *Client) Table(name string) (Table, error) {
	t, _, err := c.table(name, 0)
	return t, err
}

// Look returns the results of Info and Table, with one ioctl.
//
// Errors: ErrNotFound.
func (c *Client) Look(name string) (Info, Table, error) {
	t, info, err := c.table(name, 0)
	return info, t, err
}

// LoadedTable returns the table in the inactive slot, which is nil if the slot is
// empty.
//
// Errors: ErrNotFound.
func (c *Client) LoadedTable(name string) (Table, error) {
	t, info, err := c.table(name, flagQueryInactive)
	if !info.Loaded {
		t = nil
	}
	return t, err
}

func (c *Client) table(name string, flags uint32) (Table, Info, error) {
	fail := func(err error) (Table, Info, error) { return nil, Info{}, &Error{opTable.name, name, err} }
	rep, err := c.call(context.Background(), opTable, request{name: name, flags: flags | flagStatusTable, answers: true})
	if err != nil {
		return nil, Info{}, err
	}
	specs, err := decodeSpecs(rep.data, rep.info.Targets)
	if err != nil {
		return fail(err)
	}
	t := make(Table, 0, len(specs))
	for _, s := range specs {
		target, err := ParseTarget(s.typ, s.params)
		if err != nil {
			return fail(err)
		}
		t = append(t, Segment{s.start, s.length, target})
	}
	return t, rep.info, nil
}

// TargetStatus is the status of one segment of the live table.
type TargetStatus struct {
	Start, Length size.Sectors
	Type          string // the target's name, such as "snapshot"
	Status        Status
}

// Status returns the status of each segment of the live table, in order.
//
// Errors: ErrNotFound.
func (c *Client) Status(name string) ([]TargetStatus, error) {
	fail := func(err error) ([]TargetStatus, error) { return nil, &Error{opStatus.name, name, err} }
	rep, err := c.call(context.Background(), opStatus, request{name: name, answers: true})
	if err != nil {
		return nil, err
	}
	specs, err := decodeSpecs(rep.data, rep.info.Targets)
	if err != nil {
		return fail(err)
	}
	all := make([]TargetStatus, 0, len(specs))
	for _, s := range specs {
		status, err := ParseStatus(s.typ, s.params)
		if err != nil {
			return fail(err)
		}
		all = append(all, TargetStatus{s.start, s.length, s.typ, status})
	}
	return all, nil
}

// Deps returns the devices that the live table uses, each once.
//
// Errors: ErrNotFound.
func (c *Client) Deps(name string) ([]Device, error) {
	rep, err := c.call(context.Background(), opDeps, request{name: name, answers: true})
	if err != nil {
		return nil, err
	}
	deps, err := decodeDeps(rep.data)
	if err != nil {
		return nil, &Error{opDeps.name, name, err}
	}
	return deps, nil
}

// ListEntry is a device in the result of List.
type ListEntry struct {
	Name, UUID string
	Device     Device
	EventNr    uint32 // counts the device's events, see Watcher
}

// listed is the last list of all devices.
type listed struct {
	mu      sync.Mutex // held during the ioctls of List
	entries []ListEntry
	known   bool // entries were complete when the client's mark was set
	bytes   int  // length of the kernel's last answer
}

// List returns all devices. The caller must not change the returned slice.
//
// The kernel takes long to list many devices. So List returns its previous result
// until the kernel reports an event: a device was created, renamed or removed, or
// had an event of its own.
func (c *Client) List() ([]ListEntry, error) {
	c.listed.mu.Lock()
	defer c.listed.mu.Unlock()
	if c.listed.known && !c.eventful() {
		return c.listed.entries, nil
	}
	_, unmarked := c.call(context.Background(), opArm, request{}) // before the list, so that no event is missed
	entries, err := c.list()
	if c.listed.known = err == nil && unmarked == nil; err != nil {
		return nil, err
	}
	c.listed.entries = entries
	return entries, nil
}

// eventful reports whether there may have been an event since the client's mark
// was set.
func (c *Client) eventful() bool {
	n, failed := 0, error(nil)
	closed := c.conn.Control(func(fd uintptr) {
		n, failed = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	})
	return closed != nil || failed != nil || n != 0
}

// list asks the kernel for all devices.
func (c *Client) list() ([]ListEntry, error) {
	const more = 4 << 10 // bytes for devices created since the last answer
	rep, err := c.call(context.Background(), opList, request{flags: flagUUID, answers: true, room: c.listed.bytes + more})
	if err != nil {
		return nil, err
	}
	c.listed.bytes = len(rep.data)
	records, err := decodeList(rep.data)
	if err != nil {
		return nil, &Error{opList.name, "", err}
	}
	entries := make([]ListEntry, 0, len(records))
	for _, r := range records {
		if !r.uuidKnown {
			// Kernels before 5.13 do not list UUIDs.
			info, err := c.InfoByDevice(r.Device)
			if errors.Is(err, ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			r.UUID = info.UUID
		}
		entries = append(entries, r.ListEntry)
	}
	return entries, nil
}

// Message sends msg to the target at sector, or to the device itself if msg
// begins with "@". It returns the answer, which is "" for most messages. If the
// answer is longer than 2 KiB, Message sends msg again with a larger buffer, so msg
// must be repeatable.
//
// Errors: ErrNotFound.
func (c *Client) Message(name string, sector size.Sectors, msg string) (string, error) {
	text, err := encodeString(msg, maxRoom)
	if err != nil {
		return "", &Error{opMessage.name, name, err}
	}
	data := append(binary.NativeEndian.AppendUint64(nil, uint64(sector)), text...)
	rep, err := c.call(context.Background(), opMessage, request{name: name, data: data, answers: true})
	if err != nil || rep.flags&flagDataOut == 0 {
		return "", err
	}
	return cString(rep.data), nil
}
