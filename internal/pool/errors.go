package pool

import (
	"errors"
	"fmt"
)

// The errors of the package. Every error wraps one of them, or is a failure of the machine (a
// disk, the kernel).
var (
	// ErrNotFound: the pool has no volume or snapshot with the name.
	ErrNotFound = errors.New("not found")
	// ErrConflict: a volume or snapshot with other properties has the name.
	ErrConflict = errors.New("already exists with different properties")
	// ErrNoSpace: the pool has too few free extents, or its metadata area is full.
	ErrNoSpace = errors.New("no space in the pool")
	// ErrOutOfRange: the requested size is impossible, even in an empty pool.
	ErrOutOfRange = errors.New("size out of range")
	// ErrInvalid: the request contradicts itself or has an invalid value.
	ErrInvalid = errors.New("invalid request")
	// ErrInUse: the device is open or mounted.
	ErrInUse = errors.New("in use")
	// ErrPrecondition: the state of the volume or snapshot does not allow the request.
	ErrPrecondition = errors.New("not possible in this state")
	// ErrLost: the snapshot's content is gone because its COW store could not hold a change.
	ErrLost = errors.New("snapshot lost")
	// ErrUnavailable: the pool cannot be used now, because its volume group is damaged,
	// incomplete, exported or shared, or belongs to another system.
	ErrUnavailable = errors.New("pool unavailable")
)

// ErrFreeze: the volume could not be frozen in time for a cut; a repeated call retries.
var ErrFreeze = errors.New("the volume could not be held still")

// PendingError says that the request was accepted and continues in the background.
// A repeated request joins it.
type PendingError struct {
	What  string // "copying snapshot s1 to volume v2"
	Done  uint64 // bytes done
	Total uint64 // bytes in total; 0 if unknown

	wiping bool // repeating the request makes sense after the wiper has freed extents
}

func (e *PendingError) Error() string {
	if e.Total == 0 {
		return e.What + ": in progress; retry"
	}
	return fmt.Sprintf("%s: %d%% of %d MiB done; retry", e.What, e.Done*100/e.Total, e.Total>>20)
}
