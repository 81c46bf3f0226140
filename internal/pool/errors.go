package pool

import (
	"errors"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
)

// The errors of the package. Every error wraps one of them, or ErrFreeze, or is a failure
// of the machine (a disk, the kernel). Package catalog explains them.
var (
	ErrNotFound     = catalog.ErrNotFound
	ErrConflict     = catalog.ErrConflict
	ErrNoSpace      = catalog.ErrNoSpace
	ErrOutOfRange   = catalog.ErrOutOfRange
	ErrInvalid      = catalog.ErrInvalid
	ErrInUse        = catalog.ErrInUse
	ErrPrecondition = catalog.ErrPrecondition
	ErrLost         = catalog.ErrLost
	ErrUnavailable  = catalog.ErrUnavailable
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
