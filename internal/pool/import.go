package pool

import (
	"context"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// ImportSpec describes a logical volume of LVM2's that is to become a volume of the
// pool.
type ImportSpec struct {
	LV   string
	Name string // the CSI name; LV if empty
	// Probe examines the device. It returns how the volume is used, and the type of
	// the file system with which it is to be mounted, if it has one.
	Probe func(ctx context.Context, device string) (mode Mode, fsType string, err error)
}

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
			if o := v.volumeByLV(spec.LV); o != nil && !o.deleted && o.name == spec.Name {
				vol = v.describe(o)
				return nil
			}
			if vol, err = p.importLV(ctx, v, spec); err != nil {
				err = fmt.Errorf("importing logical volume %s/%s: %w", v.vg.Name, spec.LV, err)
			}
			return err
		})
	})
	return vol, err
}

// importLV is Import under LVM2's lock.
func (p *Pool) importLV(ctx context.Context, v *view, spec ImportSpec) (vol Volume, err error) {
	lv, err := v.importable(spec)
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
	c := asVolume(lv, spec.Name, mode, fsType)
	note(c, p.by, ReasonImported, "turned logical volume %s into volume %s", spec.LV, spec.Name)
	now, err := p.once(ctx, v, func(t *edit) error { return t.put(c) })
	if err != nil {
		return Volume{}, err
	}
	return now.describe(now.volumes[lv.ID]), nil
}

// importable finds the logical volume, and checks it as far as the metadata allows.
func (v *view) importable(spec ImportSpec) (*lvm2.LV, error) {
	if err := checkName(spec.Name); err != nil {
		return nil, err
	}
	lv := v.vg.LV(spec.LV)
	if lv == nil || snapshotSegment(lv) != nil {
		return nil, fmt.Errorf("%w: there is no logical volume of that name", ErrNotFound)
	}
	if _, err := v.kind(lv); err != nil {
		return nil, err
	}
	if v.theirLV(spec.LV) == nil {
		if o := v.volumes[lv.ID]; o != nil && !o.deleted {
			return nil, fmt.Errorf("%w: it is already volume %q", ErrConflict, o.name)
		}
		return nil, fmt.Errorf("%w: its tags of csi-dmsnap say that it is not a volume: %v", ErrPrecondition, lv.Tags)
	}
	if o := v.named[spec.Name]; o != nil {
		return nil, fmt.Errorf("%w: volume %s/%s already has the name %q; choose another with --name", ErrConflict, v.vg.Name, o.lv.Name, spec.Name)
	}
	if len(spec.LV) > maxLVName {
		return nil, fmt.Errorf("%w: its name is longer than the %d bytes that fit into an id; rename it with lvrename", ErrPrecondition, maxLVName)
	}
	if !fitsDevices(v.vg.Name, spec.LV) {
		return nil, fmt.Errorf("%w: its name and its group's name are together too long for device names, where each hyphen counts twice; rename it with lvrename", ErrPrecondition)
	}
	if why := v.notPlain(lv); why != "" {
		return nil, fmt.Errorf("%w: %s", ErrPrecondition, why)
	}
	if readOnlyLV(lv) {
		return nil, fmt.Errorf("%w: it is read-only; make it writable with lvchange -prw", ErrPrecondition)
	}
	return lv, v.writable()
}
