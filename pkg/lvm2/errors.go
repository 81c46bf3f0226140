package lvm2

import (
	"errors"
	"fmt"
)

// Reasons for failures, for errors.Is. Each error of this package wraps one of
// them, or is a failure of the machine (I/O, context).
var (
	// ErrNotFound means that the volume group, physical volume or logical volume
	// does not exist.
	ErrNotFound = errors.New("not found")
	// ErrNoTrace means that every device could be read and that none shows any
	// trace of the volume group. ErrNoTrace wraps ErrNotFound.
	ErrNoTrace = fmt.Errorf("%w, nor any trace of it", ErrNotFound)
	// ErrExists means that the name or id is taken.
	ErrExists = errors.New("already exists")
	// ErrInvalid means that a name, tag, size or logical volume breaks LVM2's
	// rules.
	ErrInvalid = errors.New("invalid")
	// ErrExported means that the volume group is exported; vgimport makes it
	// usable.
	ErrExported = errors.New("volume group is exported")
	// ErrShared means that the volume group belongs to a cluster or needs
	// lvmlockd.
	ErrShared = errors.New("volume group is shared")
	// ErrForeignSystemID means that the volume group belongs to another host.
	ErrForeignSystemID = errors.New("volume group has the system id of another host")
	// ErrReadOnly means that the volume group's status lacks WRITE.
	ErrReadOnly = errors.New("volume group is read-only")
	// ErrMissingPV means that a physical volume is absent, or marked as missing.
	ErrMissingPV = errors.New("physical volume is missing")
	// ErrDuplicatePV means that two devices have the same physical volume id.
	ErrDuplicatePV = errors.New("duplicate physical volume")
	// ErrPart means that the device is a part of another device, such as a path
	// of a multipath map, and not itself a physical volume.
	ErrPart = errors.New("a part of another device")
	// ErrDuplicateVG means that two volume groups have the same name.
	ErrDuplicateVG = errors.New("duplicate volume group name")
	// ErrDamaged means that there is no usable metadata, or that the metadata
	// contradicts itself.
	ErrDamaged = errors.New("metadata is damaged")
	// ErrUnknownStatus means that the metadata has a status word that this
	// package does not know.
	ErrUnknownStatus = errors.New("unknown status word")
	// ErrMetadataFull means that the metadata text does not fit into the metadata
	// areas.
	ErrMetadataFull = errors.New("metadata area is full")
	// ErrLocked means that lvm2 is moving or merging the logical volume.
	ErrLocked = errors.New("logical volume is locked")
	// ErrForeignSegment means that the logical volume has a segment of a type that
	// this package does not edit.
	ErrForeignSegment = errors.New("logical volume has a foreign segment type")
	// ErrConflict means that the volume group has changed on disk since it was
	// read.
	ErrConflict = errors.New("volume group changed on disk")
	// ErrUncertain means that writing the metadata failed after it began. Call
	// Read to learn which metadata is on the disks.
	ErrUncertain = errors.New("metadata was not written, or not everywhere")
	// ErrInUse means that the device is mounted, or a part of another device.
	ErrInUse = errors.New("device is in use")
	// ErrPartitioned means that the device has partitions.
	ErrPartitioned = errors.New("device has partitions")
	// ErrWriteProtected means that the device is read-only.
	ErrWriteProtected = errors.New("device is read-only")
	// ErrNotBlank means that the device has content.
	ErrNotBlank = errors.New("device is not blank")
	// ErrBlockSize means that the logical block size of the device differs from
	// the block sizes of the volume group's devices.
	ErrBlockSize = errors.New("device has another logical block size")
	// ErrTooSmall means that the device has no room for one extent.
	ErrTooSmall = errors.New("device is too small")
)
