package pool

import (
	"context"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// Import makes a linear logical volume of LVM2's a volume of the pool, by tags. It
// changes neither the content nor the device. The pool may be open, in this process
// or another, which then sees the change; Import holds LVM2's lock on the group. A
// logical volume that already is a volume of that name stays as it is.
//
// Errors: ErrNotFound, ErrConflict (the name), ErrInvalid, ErrPrecondition (LVM2
// uses it, or volumes cannot be of its kind), ErrUnavailable.
func Import(ctx context.Context, c Config, o Options, spec ImportSpec) (vol Volume, err error) {
	if spec.Name == "" {
		spec.Name = spec.LV
	}
	err = offline(ctx, c, o, func(p *Pool) error {
		return p.underLock(ctx, lvm2.Exclusive, func(v *view) (err error) {
			if o := v.VolumeByLV(spec.LV); o != nil && !o.Deleted && o.Name == spec.Name {
				vol = v.describe(o)
				return nil
			}
			if vol, err = p.importLV(ctx, v, spec); err != nil {
				err = fmt.Errorf("importing logical volume %s/%s: %w", v.VG.Name, spec.LV, err)
			}
			return err
		})
	})
	return vol, err
}

// importLV is Import under LVM2's lock.
func (p *Pool) importLV(ctx context.Context, v *view, spec ImportSpec) (vol Volume, err error) {
	lv, err := v.Importable(spec)
	if err != nil {
		return Volume{}, err
	}
	var mode Mode
	var fsType string
	err = p.withDevice(ctx, v, lv, func(path string) error {
		mode, fsType, err = spec.Probe(ctx, path)
		return err
	})
	if err != nil {
		return Volume{}, err
	}
	c := catalog.AsVolume(lv, spec.Name, mode, fsType)
	catalog.Note(c, p.by, ReasonImported, "turned logical volume %s into volume %s", spec.LV, spec.Name)
	now, err := p.once(ctx, v, func(t *edit) error { return t.Put(c) })
	if err != nil {
		return Volume{}, err
	}
	return now.describe(now.Volumes.Get(lv.ID)), nil
}
