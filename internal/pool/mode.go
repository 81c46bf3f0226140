package pool

import (
	"context"
	"fmt"
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
			o, err := t.Usable(lv)
			if err != nil || o.Mode == mode {
				return err
			}
			info, err := p.find(t.view().topDevice(o.LV))
			switch {
			case err != nil:
				return err
			case info != nil && info.OpenCount > 0:
				return fmt.Errorf("volume %s/%s: %w: its device is open", t.VG.Name, lv, ErrInUse)
			case mode == Block && !t.view().describe(o).AsBlock():
				return fmt.Errorf("volume %s/%s: %w: %s", t.VG.Name, lv, ErrPrecondition, NeverWiped)
			}
			return t.SetMode(o, mode, fsType)
		}})
	})
}

// AsBlock reports whether the volume may be used as a block device: it holds no bytes of an
// earlier owner, or nobody has written to it, so the driver can wipe it first.
func (v Volume) AsBlock() bool { return v.Mode == Block || !v.Formatted || v.Unwiped == 0 }
