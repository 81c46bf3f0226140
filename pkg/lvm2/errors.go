package lvm2

import (
	"errors"
	"fmt"
)

// What can be wrong with a volume group, a device or a request. Errors of this
// package wrap one of these, or are failures of the machine (I/O, context).
var (
	// ErrNotFound: no such volume group, physical or logical volume.
	ErrNotFound = errors.New("not found")
	// ErrNoTrace: no device shows anything of the volume group, and each of them
	// could be read. It is an ErrNotFound.
	ErrNoTrace = fmt.Errorf("%w, nor any trace of it", ErrNotFound)
	// ErrExists: the name or id is taken.
	ErrExists = errors.New("already exists")
	// ErrInvalid: a name, tag, size or logical volume breaks LVM2's rules.
	ErrInvalid = errors.New("invalid")
	// ErrExported: the volume group is exported; vgimport makes it usable.
	ErrExported = errors.New("volume group is exported")
	// ErrShared: the volume group belongs to a cluster or needs lvmlockd.
	ErrShared = errors.New("volume group is shared")
	// ErrForeignSystemID: the volume group belongs to another host.
	ErrForeignSystemID = errors.New("volume group has the system id of another host")
	// ErrReadOnly: the volume group's status lacks WRITE.
	ErrReadOnly = errors.New("volume group is read-only")
	// ErrMissingPV: a physical volume is absent, or marked as missing.
	ErrMissingPV = errors.New("physical volume is missing")
	// ErrDuplicatePV: two devices carry the same physical volume id.
	ErrDuplicatePV = errors.New("duplicate physical volume")
	// ErrPart: the device is a part of another one, and no physical volume by itself.
	ErrPart = errors.New("a part of another device")
	// ErrDuplicateVG: two volume groups have the same name.
	ErrDuplicateVG = errors.New("duplicate volume group name")
	// ErrDamaged: no usable metadata, or metadata that contradicts itself.
	ErrDamaged = errors.New("metadata is damaged")
	// ErrUnknownStatus: the metadata has a status word that is not LVM2's as known here.
	ErrUnknownStatus = errors.New("unknown status word")
	// ErrMetadataFull: the metadata text does not fit the metadata areas.
	ErrMetadataFull = errors.New("metadata area is full")
	// ErrLocked: the logical volume is being moved or merged by lvm2.
	ErrLocked = errors.New("logical volume is locked")
	// ErrForeignSegment: the logical volume has a segment type that is not edited here.
	ErrForeignSegment = errors.New("logical volume has a foreign segment type")
	// ErrConflict: the volume group changed on disk since it was read.
	ErrConflict = errors.New("volume group changed on disk")
	// ErrUncertain: writing the metadata failed on the way. The next Read tells which are on the disks.
	ErrUncertain = errors.New("metadata was not written, or not everywhere")
	// ErrInUse: the device is mounted, or a part of something else.
	ErrInUse = errors.New("device is in use")
	// ErrPartitioned: the device has partitions.
	ErrPartitioned = errors.New("device has partitions")
	// ErrWriteProtected: the device is read-only.
	ErrWriteProtected = errors.New("device is read-only")
	// ErrNotBlank: the device holds something.
	ErrNotBlank = errors.New("device is not blank")
	// ErrBlockSize: the device has logical blocks of another size than the volume group's disks.
	ErrBlockSize = errors.New("device has another logical block size")
	// ErrTooSmall: the device has no room for one extent.
	ErrTooSmall = errors.New("device is too small")
)
