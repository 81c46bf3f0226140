package dm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Reasons for failures, for errors.Is.
var (
	// ErrNotSupported means that the running kernel has no device-mapper.
	ErrNotSupported = errors.New("kernel has no device-mapper (load the module dm_mod)")
	// ErrNotFound means that no device has the name, UUID or number, or that
	// the kernel has no target with the name.
	ErrNotFound = errors.New("not found")
	// ErrBusy means that a device cannot be removed because it is open: a
	// process, a mount or another device's table uses it.
	ErrBusy = errors.New("device is in use")
	// ErrExists means that the name or the UUID belongs to another device.
	ErrExists = errors.New("name or UUID belongs to another device")
)

// Explanations of errnos that say too little.
var (
	errTable      = errors.New("kernel refused the table; see its log (dmesg) for the reason")
	errMessage    = errors.New("target refused the message; the kernel's log (dmesg) may have the reason")
	errUUIDSet    = errors.New("device already has a UUID, which cannot be changed")
	errPrivileges = errors.New("needs CAP_SYS_ADMIN in the initial user namespace")
)

// Error is the failure of one operation on one device.
type Error struct {
	Op   string // the operation, such as "remove"
	Name string // name, UUID or number of the device; empty for an operation without a device
	Err  error  // an errno, wrapped with its reason if known, or the mistake in the request
}

func (e *Error) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("device-mapper: %s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("device-mapper: %s %s: %v", e.Op, e.Name, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// explain wraps errno with its meaning for the operation.
func (op operation) explain(errno unix.Errno) error {
	reason := op.reasons[errno]
	switch {
	case reason != nil:
	case errno == unix.EACCES || errno == unix.EPERM:
		reason = errPrivileges
	case op.refusal != nil:
		reason = op.refusal
	default:
		return errno
	}
	return fmt.Errorf("%w: %w", reason, errno)
}
