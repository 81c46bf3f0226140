package pool

import (
	"context"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// A volume is used in one mode at a time. The recorded mode is the last one. The raw device
// and the file system have the same bytes. The driver makes a file system only on a volume
// to which nobody can have written, in either mode. So it clears the mark "unformatted" in
// the metadata before it hands out a raw device.

// SetMode records a new mode of a volume that nobody has open: block device, or file system
// of type fsType.
//
// Errors: ErrNotFound, ErrInUse, ErrPrecondition (the raw device might show an earlier
// owner's bytes).
func (p *Pool) SetMode(ctx context.Context, lv string, mode Mode, fsType string) error {
	if err := p.waitClosed(ctx, lv); err != nil {
		return err
	}
	return p.onVolume(ctx, lv, func(ctx context.Context) error {
		return p.do(ctx, &change{what: fmt.Sprintf("use volume %s as %s", lv, mode), edit: func(t *edit) error {
			o, err := t.usable(lv)
			if err != nil || o.mode == mode {
				return err
			}
			info, err := p.find(t.topDevice(o.lv))
			switch {
			case err != nil:
				return err
			case info != nil && info.OpenCount > 0:
				return fmt.Errorf("volume %s/%s: %w: its device is open", t.vg.Name, lv, ErrInUse)
			case mode == Block && !t.describe(o).AsBlock():
				return fmt.Errorf("volume %s/%s: %w: %s", t.vg.Name, lv, ErrPrecondition, NeverWiped)
			}
			return t.setMode(o, mode, fsType)
		}})
	})
}

// NeverWiped explains why a volume with a file system, or its snapshot, cannot be a block
// device, and what the user can do.
const NeverWiped = "a raw device would show extents below its file system that were never wiped; copy its files to a new volume in a pool whose free extents are clean, " +
	"or are cleaned at first use (csi-dmsnap pools shows it; clean in the pool's configuration sets it)"

// AsBlock reports whether the volume may be used as a block device: it holds no bytes of an
// earlier owner, or nobody has written to it, so the driver can wipe it first.
func (v Volume) AsBlock() bool { return v.Mode == Block || !v.Formatted || v.Unwiped == 0 }

// givenOut records, before the device of a block volume is made, that somebody may write to
// the volume.
func (t *edit) givenOut(lv string) error {
	o := t.volumeByLV(lv)
	if o == nil || o.mode != Block || o.formatted || o.reading() && !o.transient {
		return nil
	}
	return t.setFormatted(o)
}

// unwipedSize returns the size of the extents that may hold an earlier owner's bytes.
func (v *view) unwipedSize(o *volume) size.Bytes { return size.Bytes(o.unknown.size()) * v.extent() }

// notWiped explains why a copy cannot have another mode than its source.
func (f original) notWiped() string {
	written := f.volume.formatted
	if f.layer != nil {
		written = !f.layer.blank
	}
	if f.volume.mode == Filesystem && written {
		return NeverWiped
	}
	return "it was never used and is not wiped yet; create a new volume instead"
}
