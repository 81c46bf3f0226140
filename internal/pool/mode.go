package pool

import (
	"context"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// A volume is used in one mode at a time, and its mode on record is the last one:
// what is on a raw device and what a file system holds are the same bytes. Only a
// volume to which nobody can have written gets a file system, in either mode: that
// it does not count as unformatted any more is on the disk before its raw device is given out.

// SetMode records that a volume which nobody has open is used in another mode from
// now on: as a block device, or with a file system of that type.
//
// Errors: ErrNotFound, ErrInUse, ErrPrecondition (its raw device would show what may
// be an earlier owner's).
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
			c := o.lv.Clone()
			if c.Tags = setTag(dropTags(c.Tags, tagFS), tagMode, string(mode)); mode == Filesystem {
				c.Tags = append(c.Tags, tag(tagFS, fsType))
			}
			if mode == Filesystem && o.formatted {
				c.Tags = setTag(c.Tags, tagRaw)
			}
			return t.put(c)
		}})
	})
}

// NeverWiped says why a volume with a file system, or a snapshot of it, is no block
// device, and what to do.
const NeverWiped = "a raw device would show extents below its file system that were never wiped; copy its files to a new volume in a pool whose free extents are clean, " +
	"or are cleaned at first use (csi-dmsnap pools shows it; clean in the pool's configuration sets it)"

// AsBlock reports whether the volume may be used as a block device: nothing of it may
// be an earlier owner's, or what may is wiped first because nobody has written to it.
func (v Volume) AsBlock() bool { return v.Mode == Block || !v.Formatted || v.Unwiped == 0 }

// givenOut records that somebody may have written to a block volume, before its
// device is there to be written to.
func (t *edit) givenOut(lv string) error {
	o := t.volumeByLV(lv)
	if o == nil || o.mode != Block || o.formatted || o.reading() && !o.transient {
		return nil
	}
	c := o.lv.Clone()
	c.Tags = dropTags(c.Tags, tagUnformatted)
	return t.put(c)
}

// unwipedSize is how much of a volume may hold an earlier owner's bytes.
func (v *view) unwipedSize(o *volume) size.Bytes { return size.Bytes(o.unknown.size()) * v.extent() }

// notWiped says why a copy cannot have the other mode of what it is made from.
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
