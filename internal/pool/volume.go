package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// CreateVolume makes a volume, or finds the volume with the name. The volume owns its
// extents and can be used immediately. A volume with a source reads through the source
// until its content is copied in the background. If there is room only after the wiper has
// wiped deleted volumes, CreateVolume returns *PendingError when ctx ends; a repeated call
// continues.
//
// Errors: ErrConflict, ErrNoSpace, ErrOutOfRange, ErrInvalid, ErrNotFound (the
// source), ErrLost, ErrPrecondition, ErrUnavailable.
func (p *Pool) CreateVolume(ctx context.Context, spec VolumeSpec) (Volume, error) {
	if err := checkSpec(spec); err != nil {
		return Volume{}, err
	}
	lv, err := onceRoom(ctx, p, func() (string, error) {
		if v, err := p.latest(); err == nil && spec.Source.Kind == FromVolume && v.Named.Get(spec.Name) == nil {
			if err := p.syncBefore(ctx, spec.Source.LV); err != nil {
				return "", fmt.Errorf("create volume %q: %w", spec.Name, err)
			}
		}
		if spec.Source.Kind == FromVolume {
			p.makeWay(ctx, spec.Source.LV) // again for each attempt, because folds run in between
		}
		keys, err := p.sourceKeys(spec)
		if err != nil {
			return "", err
		}
		return run(ctx, &p.group, append([]string{nameKey(spec.Name)}, keys...), func(ctx context.Context) (string, error) {
			if spec.Source.Kind == FromNothing {
				return p.createBlank(ctx, spec)
			}
			return p.createFrom(ctx, spec)
		})
	})
	if err != nil {
		return Volume{}, err
	}
	return p.Volume(ctx, lv)
}

func checkSpec(s VolumeSpec) error {
	if err := catalog.CheckName(s.Name); err != nil {
		return err
	}
	switch {
	case s.Mode != Filesystem && s.Mode != Block:
		return fmt.Errorf("%w: volume mode %q", ErrInvalid, s.Mode)
	case s.Limit != 0 && s.Limit < s.Size:
		return fmt.Errorf("%w: the limit %v is below the size %v", ErrOutOfRange, s.Limit, s.Size)
	case s.ReadOnly && s.Source.Kind == FromNothing:
		return fmt.Errorf("%w: a read-only volume without a source could never hold anything", ErrInvalid)
	case s.Transient && s.Source.Kind == FromNothing:
		return fmt.Errorf("%w: a transient volume needs a source, because it is a scratch copy", ErrInvalid)
	case s.Transient && s.ReadOnly:
		return fmt.Errorf("%w: a transient volume cannot be read-only; request a read-only volume that is not transient", ErrInvalid)
	}
	return nil
}

// createBlank makes an empty volume and returns the name of its logical volume.
func (p *Pool) createBlank(ctx context.Context, spec VolumeSpec) (name string, err error) {
	err = p.do(ctx, &change{what: fmt.Sprintf("create volume %q", spec.Name), edit: func(t *edit) error {
		if o, err := t.Existing(spec); err != nil || o != nil {
			if o != nil {
				name = o.LV.Name
			}
			return err
		}
		n, err := t.ExtentsFor(t.BlankSize(spec), spec.Limit)
		if err != nil {
			return err
		}
		lv, err := p.newVolume(t, spec, catalog.AnyKind, n, 0)
		if err != nil {
			return err
		}
		name = lv.Name
		return t.Put(lv)
	}})
	return name, err
}

// newVolume allocates n extents on disks of a kind, and returns the logical volume of a new
// volume. It does not add the logical volume to the group. There must also be room for more
// extents, which the caller needs for the volume's store.
func (p *Pool) newVolume(t *edit, spec VolumeSpec, kind size.Bytes, n, more lvm2.Extents) (*lvm2.LV, error) {
	lv, err := p.blankVolume(t, spec, n)
	if err != nil {
		return nil, err
	}
	if err := p.checkRoom(t.view(), kind, n+more); err != nil {
		return nil, err
	}
	ranges, err := t.AllocateOn(kind, n, catalog.LowEnd)
	if err != nil {
		return nil, err
	}
	lv.Segments = catalog.AppendExtents(nil, ranges...)
	catalog.SetUnknown(lv, catalog.LogicalOutside(t.Clean, 0, ranges))
	return lv, nil
}

// blankVolume returns the logical volume of a new volume of n extents, without extents.
func (p *Pool) blankVolume(t *edit, spec VolumeSpec, n lvm2.Extents) (*lvm2.LV, error) {
	name, err := t.LVName(spec.Name)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(t.Writable(), p.roomForText(t.view())); err != nil {
		return nil, err
	}
	lv := catalog.NewVolumeLV(name, spec, size.Bytes(n)*t.ExtentSize())
	lv.CreationHost = p.host.Hostname
	return lv, nil
}

// DeleteVolume deletes a volume; it returns nil if there is none. Snapshots outlive their
// volume: the hidden blocks stay until the last snapshot is deleted. Errors: ErrInUse if
// the volume's device is open, ErrPrecondition if LVM2 made or manages the volume.
func (p *Pool) DeleteVolume(ctx context.Context, lv string) error {
	if err := p.deletable(lv); err != nil {
		return err
	}
	defer p.hydrator.stop(lv)() // hydration continues if the volume stays a fork: in use, or needed by its own snapshots
	if err := p.waitClosed(ctx, lv); err != nil {
		return err
	}
	return p.onVolume(ctx, lv, func(ctx context.Context) error {
		var family []string // the volumes that it reads through
		tries := 0
		for {
			err := p.do(ctx, &change{what: "delete volume " + lv, edit: func(t *edit) error {
				t.noAct = true
				o, err := p.inactive(t, lv)
				if o == nil || err != nil {
					return err
				}
				family = t.Family(lv)[1:]
				t.noAct = len(family) == 0 // its own devices are gone already
				return t.DeleteVolume(o)
			}, act: func(ctx context.Context, v *view) error {
				if err := p.retire(ctx, v, family); err != nil {
					// The volume is deleted; the caretaker retries the removal of the devices.
					p.log.Error(err, "The source of a deleted volume still has devices; removing them will be retried", "volume", lv)
				}
				return nil
			}})
			if errors.Is(err, errActive) {
				// A scan, as by lvm2, opens every device for a moment.
				if tries++; tries > deleteTries {
					return fmt.Errorf("volume %s/%s: %w: a device that it reads through is open", p.vgName, lv, ErrInUse)
				}
			} else {
				return err
			}
			if tries > 1 {
				time.Sleep(busyPause)
			}
			if err := p.deactivate(ctx, lv); err != nil {
				return err
			}
		}
	})
}

// inactive finds a volume that can be deleted now; nil if it is deleted already. Errors:
// errActive if the volume still has devices. They are removed before the metadata changes,
// so that a volume in use loses nothing.
func (p *Pool) inactive(t *edit, lv string) (*catalog.Volume, error) {
	o := t.VolumeByLV(lv)
	if their := t.TheirLV(lv); their != nil {
		return nil, t.NotOurs(their)
	}
	if o == nil || o.Deleted {
		return nil, nil
	}
	if err := t.CheckDelete(o); err != nil {
		return nil, err
	}
	devices := []device{t.view().topDevice(o.LV), t.view().device(o.LV, layerRecovered, udevReal)}
	if t.Disposable(o) { // otherwise its snapshots may be read through the fork device
		devices = append(devices, t.view().forkDevice(o.LV))
	}
	for _, d := range devices {
		if info, err := p.find(d); err != nil {
			return nil, err
		} else if info != nil {
			return nil, errActive
		}
	}
	return o, nil
}

// deleteTries is how often DeleteVolume tries to remove devices that are open.
const deleteTries = 10

var errActive = errors.New("the volume is active")

// deletable returns the error with which DeleteVolume would refuse the volume.
func (p *Pool) deletable(lv string) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	if o := v.VolumeByLV(lv); o != nil {
		return v.CheckDelete(o)
	}
	return nil
}

// Volume returns the volume with the name of the logical volume. The logical volume may be
// LVM2's own. Errors: ErrNotFound, after reading the metadata again.
func (p *Pool) Volume(ctx context.Context, lv string) (Volume, error) {
	v, err := p.latest()
	if err != nil {
		return Volume{}, err
	}
	o := v.VolumeByLV(lv)
	if o == nil || o.Deleted {
		// LVM2's commands, or commands of the driver in another process, may have made it.
		if err := p.refresh(ctx); err != nil {
			return Volume{}, err
		}
		if v, err = p.latest(); err != nil {
			return Volume{}, err
		}
		o = v.VolumeByLV(lv)
	}
	if their := v.TheirLV(lv); their != nil {
		return v.describeTheirs(their), nil
	}
	if o == nil || o.Deleted || o.LentTo != "" {
		return Volume{}, fmt.Errorf("volume %s/%s: %w", p.vgName, lv, ErrNotFound)
	}
	return v.describe(o), nil
}

// VolumeNamed returns the volume with the CSI name. It waits for a running operation on the
// name. Errors: ErrNotFound.
func (p *Pool) VolumeNamed(ctx context.Context, name string) (Volume, error) {
	release, err := p.keys.lock(ctx, nameKey(name))
	if err != nil {
		return Volume{}, err
	}
	defer release()
	v, err := p.latest()
	if err != nil {
		return Volume{}, err
	}
	o := v.Named.Get(name)
	if o == nil || o.LentTo != "" {
		return Volume{}, fmt.Errorf("volume named %q in pool %s: %w", name, p.name, ErrNotFound)
	}
	return v.describe(o), nil
}

// Volumes returns the volumes, sorted by the names of their logical volumes.
func (p *Pool) Volumes(context.Context) ([]Volume, error) {
	v, err := p.latest()
	if err != nil {
		return nil, err
	}
	var out []Volume
	for _, o := range v.Named.All() {
		if o.LentTo == "" {
			out = append(out, v.describe(o))
		}
	}
	slices.SortFunc(out, func(a, b Volume) int { return strings.Compare(a.LV, b.LV) })
	return out, nil
}

func (v *view) describe(o *catalog.Volume) Volume {
	return Volume{
		Name: o.Name, LV: o.LV.Name, Size: v.BytesOf(o.LV), Mode: o.Mode, FSType: o.FS, ReadOnly: o.ReadOnly,
		Source: o.Source, SourcePool: o.SourcePool, Formatted: o.Formatted, Unwiped: v.UnwipedSize(o), Copied: o.Source.Kind != FromNothing || o.Raw, Transient: o.Transient, Shared: o.Shared,
	}
}
