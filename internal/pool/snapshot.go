package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Without a configured size, a new store has a firstPart-th of the size of its volume, but
// at most mostStore.
const (
	firstPart = 10
	mostStore = 4 * size.GiB
)

// CreateSnapshot takes a snapshot of the volume, or finds the snapshot with the name. The
// volume may be in use. Its file system is frozen during the cut, so the snapshot is
// clean. A new layer becomes the live layer of the volume, and the former newest layer
// reads through the new one.
//
// Errors: ErrConflict (the name belongs to a snapshot of another volume), ErrNotFound,
// ErrNoSpace, ErrPrecondition.
func (p *Pool) CreateSnapshot(ctx context.Context, name, volumeLV string) (Snapshot, error) {
	if err := checkName(name); err != nil {
		return Snapshot{}, err
	}
	return onceRoom(ctx, p, func() (Snapshot, error) { // everything again for each attempt, because folds and writers run in between
		if v, err := p.latest(); err == nil && v.snapshots[name] == nil {
			if err := p.syncBefore(ctx, volumeLV); err != nil {
				return Snapshot{}, fmt.Errorf("create snapshot %q: %w", name, err)
			}
		}
		p.makeWay(ctx, volumeLV)
		return p.createSnapshot(ctx, name, volumeLV)
	})
}

// createSnapshot is CreateSnapshot without waiting for room. Errors: also *noRoomYet.
func (p *Pool) createSnapshot(ctx context.Context, name, volumeLV string) (Snapshot, error) {
	return run(ctx, &p.group, []string{nameKey(name), lvKey(volumeLV)}, func(ctx context.Context) (Snapshot, error) {
		what := fmt.Sprintf("create snapshot %q of volume %s", name, volumeLV)
		var id lvm2.ID
		err := p.do(ctx, &change{what: what, edit: func(t *edit) error {
			if l := t.snapshots[name]; l != nil {
				if of := t.volumes[l.of].known(); of != volumeLV {
					return fmt.Errorf("%w: snapshot %q belongs to volume %s", ErrConflict, name, of)
				}
				id = l.lv.ID
				return nil
			}
			o, err := t.changeable(volumeLV)
			if err == nil { // check before the cut holds any writer
				_, err = p.cuttable(t.view, o)
			}
			return err
		}, act: func(ctx context.Context, v *view) error {
			if id == "" {
				return nil
			}
			return p.settle(ctx, v, volumeLV)
		}})
		if err == nil && id == "" {
			err = p.take(ctx, what, volumeLV, name, func(t *edit, c cutLayer) error {
				id = c.layer
				return t.record(c, name)
			})
		}
		if err != nil {
			return Snapshot{}, err
		}
		v, err := p.latest()
		if err != nil {
			return Snapshot{}, err
		}
		l := v.layers[id]
		if l == nil {
			return Snapshot{}, fmt.Errorf("snapshot %q: %w: removed by somebody else", name, ErrNotFound)
		}
		return v.describeSnapshot(l), nil
	})
}

// usable finds a volume by the name of its logical volume. Errors: ErrNotFound, also for a
// deleted volume; ErrPrecondition.
func (v *view) usable(lv string) (*volume, error) {
	o, their := v.volumeByLV(lv), v.theirLV(lv)
	switch {
	case their != nil:
		return nil, v.notOurs(their)
	case o == nil || o.deleted:
		return nil, fmt.Errorf("volume %s/%s: %w", v.vg.Name, lv, ErrNotFound)
	case o.copying != nil:
		return nil, fmt.Errorf("volume %s/%s: %w: it is not complete, because it is being copied from pool %s; repeat CreateVolume, or delete it",
			v.vg.Name, lv, ErrPrecondition, o.sourcePool)
	}
	return o, nil
}

// changeable finds a volume whose history or size may change. Errors: those of usable, and
// ErrPrecondition for a reader or a volume that LVM2 manages.
func (v *view) changeable(lv string) (*volume, error) {
	o, err := v.usable(lv)
	if err == nil {
		if why := o.theirs(); why != "" {
			err = fmt.Errorf("volume %s/%s: %w: %s", v.vg.Name, lv, ErrPrecondition, why)
		} else {
			err = v.notAReader(o)
		}
	}
	return o, err
}

// DeleteSnapshot deletes a snapshot; it returns nil if there is none. It does not wait: the
// layer stays until no older snapshot and no copy reads through it, and its devices stay
// until they are closed.
func (p *Pool) DeleteSnapshot(ctx context.Context, lv string) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	l := v.snapshotByLV(lv)
	if l == nil {
		return nil
	}
	volumeLV := v.volumes[l.of].lv.Name
	return p.onVolume(ctx, volumeLV, func(ctx context.Context) error {
		var family []string
		return p.do(ctx, &change{what: "delete snapshot " + lv, edit: func(t *edit) error {
			l := t.snapshotByLV(lv)
			if l == nil {
				return nil
			}
			if o := t.volumes[l.of]; o.odd != nil {
				return fmt.Errorf("snapshot %s/%s: %w: volume %s: %s", t.vg.Name, lv, ErrPrecondition, o.lv.Name, o.theirs())
			}
			family = t.family(volumeLV)
			return t.unname(l)
		}, act: func(ctx context.Context, v *view) error {
			if err := p.retire(ctx, v, family); err != nil {
				// It is deleted; what is left of it in the kernel is tried again.
				klog.FromContext(ctx).Error(err, "A deleted snapshot still has devices; removing them will be retried", "snapshot", lv)
			}
			return nil
		}})
	})
}

// retire brings the kernel in line after layers of the volumes became trash. The caller lists
// a volume before the volumes that it reads through.
func (p *Pool) retire(ctx context.Context, v *view, volumes []string) error {
	var errs []error
	done := map[string]bool{}
	for _, lv := range volumes {
		if !done[lv] {
			errs = append(errs, p.converge(ctx, v, lv))
			for _, below := range v.family(lv) {
				done[below] = true
			}
		}
	}
	return errors.Join(append(errs, p.sweep(ctx, v))...)
}

// Snapshot returns the snapshot with the name of the logical volume. Errors: ErrNotFound.
func (p *Pool) Snapshot(_ context.Context, lv string) (Snapshot, error) {
	v, err := p.latest()
	if err != nil {
		return Snapshot{}, err
	}
	l := v.snapshotByLV(lv)
	if l == nil {
		return Snapshot{}, fmt.Errorf("snapshot %s/%s: %w", p.vgName, lv, ErrNotFound)
	}
	return v.describeSnapshot(l), nil
}

// SnapshotNamed returns the snapshot with the CSI name. It waits for a running operation on
// the name. Errors: ErrNotFound.
func (p *Pool) SnapshotNamed(ctx context.Context, name string) (Snapshot, error) {
	release, err := p.keys.lock(ctx, nameKey(name))
	if err != nil {
		return Snapshot{}, err
	}
	defer release()
	v, err := p.latest()
	if err != nil {
		return Snapshot{}, err
	}
	l := v.snapshots[name]
	if l == nil {
		return Snapshot{}, fmt.Errorf("snapshot named %q in pool %s: %w", name, p.name, ErrNotFound)
	}
	return v.describeSnapshot(l), nil
}

// Snapshots returns all snapshots, sorted by the names of their logical volumes.
func (p *Pool) Snapshots(context.Context) ([]Snapshot, error) {
	v, err := p.latest()
	if err != nil {
		return nil, err
	}
	var out []Snapshot
	for _, l := range v.snapshots {
		out = append(out, v.describeSnapshot(l))
	}
	slices.SortFunc(out, func(a, b Snapshot) int { return strings.Compare(a.LV, b.LV) })
	return out, nil
}

func (v *view) describeSnapshot(l *layer) Snapshot {
	o := v.volumes[l.of]
	return Snapshot{Name: l.name, LV: l.lv.Name, Volume: o.known(), Mode: o.mode, FSType: o.fs, Size: l.length.Bytes(), Asked: asked(l.asked, l.length.Bytes()), Created: l.created, Lost: v.lostSnapshot(l)}
}
