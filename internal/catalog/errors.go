package catalog

import (
	"errors"
)

// The errors of this package and of package pool. Every error wraps one of them, or is a
// failure of the machine (a disk, the kernel).
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
	// ErrLost: the content is gone. The snapshot's store overflowed, a layer or store that
	// the volume reads through was removed or lost, or the replay of a journal had no room.
	ErrLost = errors.New("snapshot lost")
	// ErrUnavailable: the pool cannot be used now, because its volume group is damaged,
	// incomplete, exported or shared, or belongs to another system.
	ErrUnavailable = errors.New("pool unavailable")
)
