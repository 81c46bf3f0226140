package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
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
	if err := catalog.CheckName(name); err != nil {
		return Snapshot{}, err
	}
	return onceRoom(ctx, p, func() (Snapshot, error) { // everything again for each attempt, because folds and writers run in between
		if v, err := p.latest(); err == nil && v.Snapshots.Get(name) == nil {
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
		id, err := p.snapshotOf(ctx, what, name, volumeLV)
		if err == nil && id == "" {
			err = p.take(ctx, what, volumeLV, name, func(t *edit, c catalog.CutLayer) error {
				id = c.Layer
				return t.Record(c, name)
			})
		}
		if err != nil {
			return Snapshot{}, err
		}
		v, err := p.latest()
		if err != nil {
			return Snapshot{}, err
		}
		l := v.Layers.Get(id)
		if l == nil {
			return Snapshot{}, fmt.Errorf("snapshot %q: %w: removed by somebody else", name, ErrNotFound)
		}
		return v.describeSnapshot(l), nil
	})
}

// snapshotOf finds a snapshot of the volume by its CSI name and brings the kernel in line with
// the metadata, for a repeated call. It returns "" if no snapshot has the name. The caller holds
// the name's key. Errors: ErrConflict.
func (p *Pool) snapshotOf(ctx context.Context, what, name, volumeLV string) (id lvm2.ID, err error) {
	if v, err := p.latest(); err != nil || v.Snapshots.Get(name) == nil { // the cut's edit looks again
		return "", err
	}
	err = p.do(ctx, &change{what: what, edit: func(t *edit) error {
		l := t.Snapshots.Get(name)
		if l == nil {
			return nil
		}
		if of := t.Volumes.Get(l.Of).Known(); of != volumeLV {
			return fmt.Errorf("%w: snapshot %q belongs to volume %s", ErrConflict, name, of)
		}
		id = l.LV.ID
		return nil
	}, act: func(ctx context.Context, v *view) error {
		if id == "" {
			return nil
		}
		return p.settle(ctx, v, volumeLV)
	}})
	return id, err
}

// DeleteSnapshot deletes a snapshot; it returns nil if there is none. It does not wait: the
// layer stays until no older snapshot and no copy reads through it, and its devices stay
// until they are closed.
func (p *Pool) DeleteSnapshot(ctx context.Context, lv string) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	l := v.SnapshotByLV(lv)
	if l == nil {
		return nil
	}
	volumeLV := v.Volumes.Get(l.Of).LV.Name
	return p.onVolume(ctx, volumeLV, func(ctx context.Context) error {
		var family []string
		return p.do(ctx, &change{what: "delete snapshot " + lv, edit: func(t *edit) error {
			l := t.SnapshotByLV(lv)
			if l == nil {
				return nil
			}
			if o := t.Volumes.Get(l.Of); o.Odd != nil {
				return fmt.Errorf("snapshot %s/%s: %w: volume %s: %s", t.VG.Name, lv, ErrPrecondition, o.LV.Name, o.Theirs())
			}
			family = t.Family(volumeLV)
			return t.Unname(l)
		}, act: func(ctx context.Context, v *view) error {
			if err := p.retire(ctx, v, family); err != nil {
				// The snapshot is deleted; the caretaker retries the removal of its devices.
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
			for _, below := range v.Family(lv) {
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
	l := v.SnapshotByLV(lv)
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
	l := v.Snapshots.Get(name)
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
	for _, l := range v.Snapshots.All() {
		out = append(out, v.describeSnapshot(l))
	}
	slices.SortFunc(out, func(a, b Snapshot) int { return strings.Compare(a.LV, b.LV) })
	return out, nil
}

func (v *view) describeSnapshot(l *catalog.Layer) Snapshot {
	o := v.Volumes.Get(l.Of)
	return Snapshot{Name: l.Name, LV: l.LV.Name, Volume: o.Known(), Mode: o.Mode, FSType: o.FS, Size: l.Length.Bytes(), Asked: catalog.Asked(l.Asked, l.Length.Bytes()), Created: l.Created, Lost: v.LostSnapshot(l)}
}
