package dm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// operation is one ioctl of <linux/dm-ioctl.h>, or one use of an ioctl.
type operation struct {
	nr      uint32
	name    string
	whole   bool                 // no signal may interrupt the ioctl, not even if it is restarted
	reasons map[unix.Errno]error // meanings of errnos
	refusal error                // meaning of all other errnos
}

var (
	lookup = map[unix.Errno]error{unix.ENXIO: ErrNotFound}
	naming = map[unix.Errno]error{unix.ENXIO: ErrNotFound, unix.EBUSY: ErrExists}

	opVersion       = operation{nr: 0, name: "version"}
	opList          = operation{nr: 2, name: "list devices"}
	opCreate        = operation{nr: 3, name: "create", reasons: map[unix.Errno]error{unix.EBUSY: ErrExists}}
	opRemove        = operation{nr: 4, name: "remove", reasons: map[unix.Errno]error{unix.ENXIO: ErrNotFound, unix.EBUSY: ErrBusy}}
	opRename        = operation{nr: 5, name: "rename", reasons: naming}
	opSetUUID       = operation{nr: 5, name: "set UUID of", reasons: map[unix.Errno]error{unix.ENXIO: ErrNotFound, unix.EBUSY: ErrExists, unix.EINVAL: errUUIDSet}}
	opSuspend       = operation{nr: 6, name: "suspend", reasons: lookup}
	opResume        = operation{nr: 6, name: "resume", whole: true, reasons: lookup, refusal: errTable}
	opInfo          = operation{nr: 7, name: "info", reasons: lookup}
	opLoad          = operation{nr: 9, name: "load table of", refusal: errTable}
	opClear         = operation{nr: 10, name: "clear loaded table of", reasons: lookup}
	opDeps          = operation{nr: 11, name: "dependencies of", reasons: lookup}
	opTable         = operation{nr: 12, name: "table of", reasons: lookup}
	opStatus        = operation{nr: 12, name: "status of", reasons: lookup}
	opTargets       = operation{nr: 13, name: "list targets"}
	opMessage       = operation{nr: 14, name: "message to", reasons: lookup, refusal: errMessage}
	opArm           = operation{nr: 16, name: "arm events"}
	opTargetVersion = operation{nr: 17, name: "version of target", reasons: map[unix.Errno]error{unix.EINVAL: ErrNotFound}}
)

// changes reports whether the operation changes anything in the kernel.
func (op operation) changes() bool {
	return slices.Contains([]uint32{opCreate.nr, opRemove.nr, opRename.nr, opSuspend.nr, opLoad.nr, opClear.nr, opMessage.nr}, op.nr)
}

// requested returns the name or the UUID by which an encoded request chooses its
// device.
func requested(b []byte) string {
	return cString(b[offName:offName+nameLen]) + cString(b[offUUID:offUUID+uuidLen])
}

// Flags of struct dm_ioctl.
const (
	flagReadOnly        = 1 << 0
	flagSuspend         = 1 << 1
	flagStatusTable     = 1 << 4
	flagActivePresent   = 1 << 5
	flagInactivePresent = 1 << 6
	flagBufferFull      = 1 << 8
	flagSkipLockFS      = 1 << 10
	flagNoFlush         = 1 << 11
	flagQueryInactive   = 1 << 12
	flagUUID            = 1 << 14
	flagDataOut         = 1 << 16
	flagDeferredRemove  = 1 << 17
	flagInternalSuspend = 1 << 18
)

// Layout of struct dm_ioctl: offsets of its fields, its length and the lengths
// of its strings, each with the terminating NUL.
const (
	offDataSize    = 12
	offDataStart   = 16
	offTargetCount = 20
	offOpenCount   = 24
	offFlags       = 28
	offEventNr     = 32
	offDev         = 40
	offName        = 48
	offUUID        = 176
	headerLen      = 312

	nameLen = 128
	uuidLen = 129
)

// The buffer for answers starts with answerRoom bytes after the header and grows by
// a factor of answerGrowth until the answer fits. The kernel copies the whole buffer
// in both directions, so it starts only as long as most answers are. No answer is
// expected to reach maxRoom.
const (
	answerRoom   = 2 << 10
	answerGrowth = 4
	maxRoom      = 256 << 20
)

// request is the input of an ioctl. At most one of name, uuid and dev may choose
// the device.
type request struct {
	name    string
	uuid    string
	dev     Device
	flags   uint32
	cookie  uint32 // the input value of event_nr
	targets uint32
	data    []byte
	answers bool // the kernel puts data after the header
	room    int  // expected length of the answer in bytes; 0 if unknown
}

// device returns the request's device as error messages name it.
func (r *request) device() string {
	switch {
	case r.name != "":
		return r.name
	case r.uuid != "":
		return r.uuid
	case r.dev != Device{}:
		return r.dev.String()
	}
	return ""
}

// check rejects strings that do not fit into their fields: the kernel would see
// them truncated.
func (r *request) check() error {
	switch {
	case len(r.name) >= nameLen:
		return fmt.Errorf("name has %d bytes, device-mapper accepts at most %d", len(r.name), nameLen-1)
	case len(r.uuid) >= uuidLen:
		return fmt.Errorf("UUID has %d bytes, device-mapper accepts at most %d", len(r.uuid), uuidLen-1)
	case bytes.IndexByte([]byte(r.name+r.uuid), 0) >= 0:
		return errors.New("name or UUID has a NUL byte")
	}
	return nil
}

// encode returns struct dm_ioctl and the data after it. It sends version 4.0.0,
// the oldest that has these requests: kernels refuse versions newer than their
// own.
func (r *request) encode(room int) []byte {
	b := make([]byte, headerLen+max(len(r.data), room))
	o := binary.NativeEndian
	o.PutUint32(b, 4)
	o.PutUint32(b[offDataSize:], uint32(len(b)))
	o.PutUint32(b[offDataStart:], headerLen)
	o.PutUint32(b[offTargetCount:], r.targets)
	o.PutUint32(b[offFlags:], r.flags)
	o.PutUint32(b[offEventNr:], r.cookie)
	o.PutUint64(b[offDev:], r.dev.encode())
	copy(b[offName:], r.name)
	copy(b[offUUID:], r.uuid)
	copy(b[headerLen:], r.data)
	return b
}

// reply is the kernel's answer to a request.
type reply struct {
	version Version
	info    Info
	flags   uint32
	data    []byte // the bytes after the header
}

func decodeReply(b []byte) (reply, error) {
	if len(b) < headerLen {
		return reply{}, errShort
	}
	o := binary.NativeEndian
	flags := o.Uint32(b[offFlags:])
	start, end := uint64(o.Uint32(b[offDataStart:])), uint64(o.Uint32(b[offDataSize:]))
	var data []byte
	if start < end {
		if end > uint64(len(b)) {
			return reply{}, errShort
		}
		data = b[start:end]
	}
	return reply{
		version: Version{o.Uint32(b), o.Uint32(b[4:]), o.Uint32(b[8:])},
		info: Info{
			Name:            cString(b[offName : offName+nameLen]),
			UUID:            cString(b[offUUID : offUUID+uuidLen]),
			Device:          decodeDevice(o.Uint64(b[offDev:])),
			OpenCount:       int(int32(o.Uint32(b[offOpenCount:]))),
			EventNr:         o.Uint32(b[offEventNr:]),
			Targets:         int(o.Uint32(b[offTargetCount:])),
			Suspended:       flags&flagSuspend != 0,
			ReadOnly:        flags&flagReadOnly != 0,
			Live:            flags&flagActivePresent != 0,
			Loaded:          flags&flagInactivePresent != 0,
			DeferredRemove:  flags&flagDeferredRemove != 0,
			InternalSuspend: flags&flagInternalSuspend != 0,
		},
		flags: flags,
		data:  data,
	}, nil
}

// control is an open /dev/mapper/control.
type control struct {
	file *os.File
	conn syscall.RawConn
}

func newControl(path string) (control, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return control{}, err
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return control{}, errors.Join(err, f.Close())
	}
	return control{f, conn}, nil
}

// call makes every ioctl of this package. The end of ctx interrupts the ioctl; with
// a context that cannot end, it runs until the kernel is done.
func (k control) call(ctx context.Context, op operation, r request) (reply, error) {
	fail := func(err error) (reply, error) { return reply{}, &Error{op.name, r.device(), err} }
	if err := r.check(); err != nil {
		return fail(err)
	}
	room := 0
	if r.answers {
		room = max(answerRoom, r.room)
	}
	for ; room <= maxRoom; room *= answerGrowth {
		b := r.encode(room)
		if err := k.ioctl(ctx, op, b); err != nil {
			var errno unix.Errno
			if errors.As(err, &errno) {
				err = op.explain(errno)
			}
			return fail(err)
		}
		rep, err := decodeReply(b)
		if err != nil {
			return fail(err)
		}
		if rep.flags&flagBufferFull == 0 || !r.answers {
			return rep, nil
		}
	}
	return fail(fmt.Errorf("answer is longer than %d bytes", maxRoom))
}
