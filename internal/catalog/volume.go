package catalog

import (
	"fmt"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// NeverWiped explains why a volume with a file system, or its snapshot, cannot be a block
// device, and what the user can do.
const NeverWiped = "a raw device would show extents below its file system that were never wiped; copy its files to a new volume in a pool whose free extents are clean, " +
	"or are cleaned at first use (csi-dmsnap pools shows it; clean in the pool's configuration sets it)"

// GivenOut records, before the device of a block volume is made, that somebody may write to
// the volume.
func (t *Edit) GivenOut(lv string) error {
	o := t.VolumeByLV(lv)
	if o == nil || o.Mode != Block || o.Formatted || o.Reading() && !o.Transient {
		return nil
	}
	return t.SetFormatted(o)
}

// UnwipedSize returns the size of the extents that may hold an earlier owner's bytes.
func (v *View) UnwipedSize(o *Volume) size.Bytes {
	return size.Bytes(o.Unknown.Size()) * v.ExtentSize()
}

// notWiped explains why a copy cannot have another mode than its source.
func (f Original) notWiped() string {
	written := f.Volume.Formatted
	if f.Layer != nil {
		written = !f.Layer.Blank
	}
	if f.Volume.Mode == Filesystem && written {
		return NeverWiped
	}
	return "it was never used and is not wiped yet; create a new volume instead"
}

// Usable finds a volume by the name of its logical volume. Errors: ErrNotFound, also for a
// deleted volume; ErrPrecondition.
func (v *View) Usable(lv string) (*Volume, error) {
	o, their := v.VolumeByLV(lv), v.TheirLV(lv)
	switch {
	case their != nil:
		return nil, v.NotOurs(their)
	case o == nil || o.Deleted:
		return nil, fmt.Errorf("volume %s/%s: %w", v.VG.Name, lv, ErrNotFound)
	case o.Copying != nil:
		return nil, fmt.Errorf("volume %s/%s: %w: it is not complete, because it is being copied from pool %s; repeat CreateVolume, or delete it",
			v.VG.Name, lv, ErrPrecondition, o.SourcePool)
	}
	return o, nil
}

// Changeable finds a volume whose history or size may change. Errors: those of Usable, and
// ErrPrecondition for a reader or a volume that LVM2 manages.
func (v *View) Changeable(lv string) (*Volume, error) {
	o, err := v.Usable(lv)
	if err == nil {
		if why := o.Theirs(); why != "" {
			err = fmt.Errorf("volume %s/%s: %w: %s", v.VG.Name, lv, ErrPrecondition, why)
		} else {
			err = v.notAReader(o)
		}
	}
	return o, err
}

// defaultSize is the size of a volume if the request names none.
const defaultSize = size.GiB

// ExtentsFor returns the size of a new volume in extents.
func (v *View) ExtentsFor(want, limit size.Bytes) (lvm2.Extents, error) {
	n := v.Extents(want)
	if n == 0 {
		n = 1
	}
	if got := size.Bytes(n) * v.ExtentSize(); limit != 0 && got > limit {
		return 0, fmt.Errorf("%w: in whole extents of %v the size is %v, above the limit %v", ErrOutOfRange, v.ExtentSize(), got, limit)
	}
	if int64(size.Bytes(n)*v.ExtentSize()) < 0 {
		return 0, fmt.Errorf("%w: %v", ErrOutOfRange, want)
	}
	return n, nil
}

// Existing finds the volume with spec's name; nil if there is none. Errors: ErrConflict if
// the volume differs from spec.
func (v *View) Existing(spec VolumeSpec) (*Volume, error) {
	o := v.Named.Get(spec.Name)
	if o == nil {
		return nil, nil
	}
	have := v.BytesOf(o.LV)
	differs := ""
	switch {
	case spec.Size != 0 && spec.Size != o.asked && (have < spec.Size || have >= v.given(spec)+v.ExtentSize()):
		differs = fmt.Sprintf("has %v, but %v was requested", have, spec.Size)
	case spec.Limit != 0 && have > spec.Limit:
		differs = fmt.Sprintf("has %v, above the limit %v", have, spec.Limit)
	case o.Mode != spec.Mode || o.Mode == Filesystem && o.FS != spec.FSType:
		differs = fmt.Sprintf("has mode %s %s", o.Mode, o.FS)
	case o.ReadOnly != spec.ReadOnly:
		differs = fmt.Sprintf("has read-only %v", o.ReadOnly)
	case o.Shared != spec.Shared:
		differs = fmt.Sprintf("has sharing by readers on several nodes %v", o.Shared)
	case o.Transient != spec.Transient:
		differs = fmt.Sprintf("has transient %v", o.Transient)
	case o.Source != spec.Source || o.SourcePool != spec.SourcePool:
		differs = strings.TrimSpace(fmt.Sprintf("has the source %s %s %s", o.Source.Kind, o.Source.LV, o.SourcePool))
	}
	if differs != "" {
		return nil, fmt.Errorf("%w: volume %q (%s/%s) %s", ErrConflict, spec.Name, v.VG.Name, o.LV.Name, differs)
	}
	return o, nil
}

// CheckDelete returns an error if o cannot be deleted, as far as the metadata shows. The kernel
// may still have the volume open.
func (v *View) CheckDelete(o *Volume) error {
	if why := o.Theirs(); why != "" {
		return fmt.Errorf("volume %s/%s: %w: %s", v.VG.Name, o.LV.Name, ErrPrecondition, why)
	}
	return v.Writable()
}
