package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// defaultSize is the size of a volume if the request names none.
const defaultSize = size.GiB

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
		if v, err := p.latest(); err == nil && spec.Source.Kind == FromVolume && v.named[spec.Name] == nil {
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
	if err := checkName(s.Name); err != nil {
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

// extentsFor returns the size of a new volume in extents.
func (v *view) extentsFor(want, limit size.Bytes) (lvm2.Extents, error) {
	n := v.extents(want)
	if n == 0 {
		n = 1
	}
	if got := size.Bytes(n) * v.extent(); limit != 0 && got > limit {
		return 0, fmt.Errorf("%w: in whole extents of %v the size is %v, above the limit %v", ErrOutOfRange, v.extent(), got, limit)
	}
	if int64(size.Bytes(n)*v.extent()) < 0 {
		return 0, fmt.Errorf("%w: %v", ErrOutOfRange, want)
	}
	return n, nil
}

// existing finds the volume with spec's name; nil if there is none. Errors: ErrConflict if
// the volume differs from spec.
func (v *view) existing(spec VolumeSpec) (*volume, error) {
	o := v.named[spec.Name]
	if o == nil {
		return nil, nil
	}
	have := v.bytesOf(o.lv)
	differs := ""
	switch {
	case spec.Size != 0 && spec.Size != o.asked && (have < spec.Size || have >= v.given(spec)+v.extent()):
		differs = fmt.Sprintf("has %v, but %v was requested", have, spec.Size)
	case spec.Limit != 0 && have > spec.Limit:
		differs = fmt.Sprintf("has %v, above the limit %v", have, spec.Limit)
	case o.mode != spec.Mode || o.mode == Filesystem && o.fs != spec.FSType:
		differs = fmt.Sprintf("has mode %s %s", o.mode, o.fs)
	case o.readOnly != spec.ReadOnly:
		differs = fmt.Sprintf("has read-only %v", o.readOnly)
	case o.shared != spec.Shared:
		differs = fmt.Sprintf("has sharing by readers on several nodes %v", o.shared)
	case o.transient != spec.Transient:
		differs = fmt.Sprintf("has transient %v", o.transient)
	case o.source != spec.Source || o.sourcePool != spec.SourcePool:
		differs = strings.TrimSpace(fmt.Sprintf("has the source %s %s %s", o.source.Kind, o.source.LV, o.sourcePool))
	}
	if differs != "" {
		return nil, fmt.Errorf("%w: volume %q (%s/%s) %s", ErrConflict, spec.Name, v.vg.Name, o.lv.Name, differs)
	}
	return o, nil
}

// createBlank makes an empty volume and returns the name of its logical volume.
func (p *Pool) createBlank(ctx context.Context, spec VolumeSpec) (name string, err error) {
	err = p.do(ctx, &change{what: fmt.Sprintf("create volume %q", spec.Name), edit: func(t *edit) error {
		if o, err := t.existing(spec); err != nil || o != nil {
			if o != nil {
				name = o.lv.Name
			}
			return err
		}
		n, err := t.extentsFor(t.blankSize(spec), spec.Limit)
		if err != nil {
			return err
		}
		lv, err := p.newVolume(t, spec, anyKind, n, 0)
		if err != nil {
			return err
		}
		name = lv.Name
		return t.put(lv)
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
	if err := p.checkRoom(t.view, kind, n+more); err != nil {
		return nil, err
	}
	ranges, err := t.allocateOn(kind, n, lowEnd)
	if err != nil {
		return nil, err
	}
	lv.Segments = appendExtents(nil, ranges...)
	setUnknown(lv, logicalOutside(t.clean, 0, ranges))
	return lv, nil
}

// blankVolume returns the logical volume of a new volume of n extents, without extents.
func (p *Pool) blankVolume(t *edit, spec VolumeSpec, n lvm2.Extents) (*lvm2.LV, error) {
	name, err := t.lvName(spec.Name)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(t.writable(), p.roomForText(t.view)); err != nil {
		return nil, err
	}
	lv := newVolumeLV(name, spec, size.Bytes(n)*t.extent())
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
				o, err := p.inactive(t, lv)
				if o == nil || err != nil {
					return err
				}
				family = t.family(lv)[1:]
				return t.deleteVolume(o)
			}, act: func(ctx context.Context, v *view) error {
				if len(family) == 0 {
					return nil
				}
				if err := p.retire(ctx, v, family); err != nil {
					// It is deleted; what is left in the kernel is tried again.
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
func (p *Pool) inactive(t *edit, lv string) (*volume, error) {
	o := t.volumeByLV(lv)
	if their := t.theirLV(lv); their != nil {
		return nil, t.notOurs(their)
	}
	if o == nil || o.deleted {
		return nil, nil
	}
	if err := t.checkDelete(o); err != nil {
		return nil, err
	}
	devices := []device{t.topDevice(o.lv), t.device(o.lv, layerRecovered, udevReal)}
	if t.disposable(o) { // otherwise its snapshots may be read through the fork device
		devices = append(devices, t.forkDevice(o.lv))
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
	if o := v.volumeByLV(lv); o != nil {
		return v.checkDelete(o)
	}
	return nil
}

func (v *view) checkDelete(o *volume) error {
	if why := o.theirs(); why != "" {
		return fmt.Errorf("volume %s/%s: %w: %s", v.vg.Name, o.lv.Name, ErrPrecondition, why)
	}
	return v.writable()
}

// Volume returns the volume with the name of the logical volume. The logical volume may be
// LVM2's own. Errors: ErrNotFound, after reading the metadata again.
func (p *Pool) Volume(ctx context.Context, lv string) (Volume, error) {
	v, err := p.latest()
	if err != nil {
		return Volume{}, err
	}
	o := v.volumeByLV(lv)
	if o == nil || o.deleted {
		// LVM2's commands, or commands of the driver in another process, may have made it.
		if err := p.refresh(ctx); err != nil {
			return Volume{}, err
		}
		if v, err = p.latest(); err != nil {
			return Volume{}, err
		}
		o = v.volumeByLV(lv)
	}
	if their := v.theirLV(lv); their != nil {
		return v.describeTheirs(their), nil
	}
	if o == nil || o.deleted || o.lentTo != "" {
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
	o := v.named[name]
	if o == nil || o.lentTo != "" {
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
	for _, o := range v.named {
		if o.lentTo == "" {
			out = append(out, v.describe(o))
		}
	}
	slices.SortFunc(out, func(a, b Volume) int { return strings.Compare(a.LV, b.LV) })
	return out, nil
}

func (v *view) describe(o *volume) Volume {
	return Volume{
		Name: o.name, LV: o.lv.Name, Size: v.bytesOf(o.lv), Mode: o.mode, FSType: o.fs, ReadOnly: o.readOnly,
		Source: o.source, SourcePool: o.sourcePool, Formatted: o.formatted, Unwiped: v.unwipedSize(o), Copied: o.source.Kind != FromNothing || o.raw, Transient: o.transient, Shared: o.shared,
	}
}
