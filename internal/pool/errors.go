package pool

import (
	"errors"
	"fmt"
)

// What can be wrong with a request or with a pool. Every error of this package
// wraps one of these, or is a failure of the machine (a disk, the kernel).
var (
	// ErrNotFound: no volume or snapshot of that name in this pool.
	ErrNotFound = errors.New("not found")
	// ErrConflict: the name is taken by a volume or snapshot that is not what was asked for.
	ErrConflict = errors.New("already exists with different properties")
	// ErrNoSpace: the pool's free extents, or its metadata area, do not suffice.
	ErrNoSpace = errors.New("no space in the pool")
	// ErrOutOfRange: the size asked for can never be met, however much room the pool has.
	ErrOutOfRange = errors.New("size out of range")
	// ErrInvalid: the request itself makes no sense.
	ErrInvalid = errors.New("invalid request")
	// ErrInUse: the device is open or mounted.
	ErrInUse = errors.New("in use")
	// ErrPrecondition: the state of the volume or snapshot does not allow the request.
	ErrPrecondition = errors.New("not possible in this state")
	// ErrLost: the snapshot's content is gone because its COW store could not hold a change.
	ErrLost = errors.New("snapshot lost")
	// ErrFreeze: the volume could not be held still in time for a cut; asking again tries again.
	ErrFreeze = errors.New("the volume could not be held still")
	// ErrUnavailable: the pool cannot be used now: its volume group is damaged,
	// incomplete, exported, shared or somebody else's.
	ErrUnavailable = errors.New("pool unavailable")
)

// PendingError says that the request was accepted and goes on in the
// background; asking again joins it.
type PendingError struct {
	What  string // "copying snapshot s1 to volume v2"
	Done  uint64 // units done, in bytes
	Total uint64 // units in all, in bytes; 0 if unknown

	wiping bool // asking again makes sense once the wiper has freed extents
}

func (e *PendingError) Error() string {
	if e.Total == 0 {
		return e.What + ": in progress; retry"
	}
	return fmt.Sprintf("%s: %d%% of %d MiB done; retry", e.What, e.Done*100/e.Total, e.Total>>20)
}
