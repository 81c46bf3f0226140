package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// RollbackSpec names a volume, and the snapshot to whose content it returns.
type RollbackSpec struct {
	Volume   string // the volume's logical volume
	Snapshot string // the snapshot's logical volume
	DryRun   bool   // only report what would be done, or why it cannot be done
}

// RolledBack describes a rollback that was done or, in a dry run, would be.
type RolledBack struct {
	Volume   Volume
	Snapshot Snapshot
	// Newest is the newest snapshot of the volume's content before the rollback.
	// The writes after that snapshot are lost. Its Name is "" if there is no
	// snapshot.
	Newest Snapshot
	// Former is the hidden logical volume that keeps the former blocks of the
	// volume for its snapshots; "" if they need none of them, and in a dry run.
	Former string
}

// rollbackPause is how long a rollback lets others work on the group before it
// checks for room again.
const rollbackPause = 200 * time.Millisecond

// Rollback returns a volume to its content at one of its snapshots, with the same
// names, id and size. The volume becomes a fork of the snapshot: it can be used
// immediately, and is hydrated in the background. All snapshots stay, also the
// newer ones. Writes since the newest snapshot are lost.
//
// The volume must not be in use. The change is one commit to the metadata, under
// LVM2's lock. The pool may be open in another process, which follows within a
// moment, or when it starts.
//
// Errors: ErrNotFound, ErrInUse, ErrLost, ErrNoSpace, ErrPrecondition (the snapshot
// belongs to another volume, or the volume is read-only or LVM2's), ErrUnavailable;
// *PendingError if ctx ends while deleted volumes must be wiped to make room.
func Rollback(ctx context.Context, c Config, o Options, spec RollbackSpec) (r RolledBack, err error) {
	err = offline(ctx, c, o, func(p *Pool) error {
		for {
			if r, err = p.rollback(ctx, spec); err != nil {
				err = fmt.Errorf("rolling volume %s/%s back to snapshot %s: %w", p.vgName, spec.Volume, spec.Snapshot, err)
			}
			var debt *PendingError
			if spec.DryRun || !errors.As(err, &debt) {
				return err
			}
			select {
			case <-time.After(rollbackPause):
			case <-ctx.Done():
				return err
			}
		}
	})
	return r, err
}

// rollback makes one attempt.
func (p *Pool) rollback(ctx context.Context, spec RollbackSpec) (r RolledBack, err error) {
	err = p.underLock(ctx, lvm2.Exclusive, func(v *view) error {
		_, _, err := p.rollbackOf(v, spec)
		return err
	})
	if err != nil {
		return RolledBack{}, err
	}
	if err := p.waitClosed(ctx, spec.Volume); err != nil {
		return RolledBack{}, err
	}
	err = p.underLock(ctx, lvm2.Exclusive, func(v *view) error {
		if spec.DryRun {
			o, l, err := p.rollbackOf(v, spec)
			if err != nil {
				return err
			}
			r = v.rolledBack(o, l)
			return nil
		}
		now, err := p.once(ctx, v, func(t *edit) (err error) {
			r, err = p.rollBack(ctx, t, spec)
			return err
		})
		if err != nil {
			r = RolledBack{}
			return err
		}
		// The rollback is on the disk, so a failure here must not cause another
		// attempt: it would set the restored volume aside. The driver that has the
		// pool open also renames.
		if err := p.renamed(ctx, now); err != nil {
			p.log.Error(err, "Failed to rename devices after the rollback; the driver renames them when it has the pool open", "volume", spec.Volume)
		}
		return nil
	})
	return r, err
}

// rollbackOf returns the volume and the layer, or an error if the rollback is
// impossible. It changes nothing.
func (p *Pool) rollbackOf(v *view, spec RollbackSpec) (*catalog.Volume, *catalog.Layer, error) {
	o, err := v.Changeable(spec.Volume)
	if err != nil {
		return nil, nil, err
	}
	if o.ReadOnly {
		return nil, nil, fmt.Errorf("%w: the volume is read-only and never changes", ErrPrecondition)
	}
	l := v.SnapshotByLV(spec.Snapshot)
	if l == nil {
		return nil, nil, fmt.Errorf("snapshot %s/%s: %w", v.VG.Name, spec.Snapshot, ErrNotFound)
	}
	of := v.Volumes.Get(l.Of)
	if of.Known() != o.LV.Name {
		return nil, nil, fmt.Errorf("%w: snapshot %s belongs to volume %s", ErrPrecondition, l.LV.Name, of.Known())
	}
	if why := of.Theirs(); why != "" {
		return nil, nil, fmt.Errorf("%w: %s has the blocks of snapshot %s: %s", ErrPrecondition, of.LV.Name, l.LV.Name, why)
	}
	if v.LostSnapshot(l) {
		return nil, nil, fmt.Errorf("snapshot %s/%s: %w", v.VG.Name, l.LV.Name, ErrLost)
	}
	if err := errors.Join(v.Writable(), p.roomForText(v), p.intact(v, of, l), p.unmounted(v, of, l)); err != nil {
		return nil, nil, err
	}
	if err := p.unused(v, o); err != nil {
		return nil, nil, err
	}
	kind, err := v.KindOf(of)
	if err != nil {
		return nil, nil, err
	}
	return o, l, p.checkRoom(v, kind, o.LV.Size()+p.forkStore(v, l.Length.Bytes())+p.flatNeed(v, of, l))
}

// unused returns an error if the volume is in use: its device is mounted, or bound
// to a place where a pod will open it.
func (p *Pool) unused(v *view, o *catalog.Volume) error {
	info, err := p.find(v.topDevice(o.LV))
	if err != nil || info == nil {
		return err
	}
	at, err := mountPoint(info.Device)
	if err == nil && at == "" {
		at, err = boundNode(info.Device)
	}
	if err != nil {
		return err
	}
	if at != "" {
		return fmt.Errorf("%w: it is in use at %s; stop the pods that use it and wait until it is unmounted", ErrInUse, at)
	}
	return nil
}

// rollBack is the edit. It removes the volume's device last, so that a refused
// rollback changes nothing.
func (p *Pool) rollBack(ctx context.Context, t *edit, spec RollbackSpec) (RolledBack, error) {
	o, l, err := p.rollbackOf(t.view(), spec)
	if err != nil {
		return RolledBack{}, err
	}
	r := t.view().rolledBack(o, l)
	kind, err := t.KindOf(t.Volumes.Get(l.Of))
	if err != nil {
		return RolledBack{}, err
	}
	ranges, err := t.AllocateOn(kind, o.LV.Size(), catalog.LowEnd)
	if err != nil {
		return RolledBack{}, err
	}
	// Keep the name and all other properties of the volume.
	lv := o.LV.Clone()
	lv.ID, lv.CreationTime, lv.CreationHost = lvm2.NewID(), time.Now(), p.host.Hostname
	catalog.Note(lv, p.by, ReasonRolledBack, "rolled the volume back to snapshot %s, taken %s; writes since %s are lost",
		l.Name, l.Created.UTC().Format(time.RFC3339), r.lastKept())
	lv.Segments = catalog.AppendExtents(nil, ranges...)
	catalog.SetUnknown(lv, catalog.LogicalOutside(t.Clean, 0, ranges))
	if r.Former, err = t.SetAside(o); err != nil {
		return RolledBack{}, err
	}
	store := p.forkStore(t.view(), l.Length.Bytes())
	if err := p.asFork(t, lv, l.LV.ID, catalog.ContentAt(o, l), store); err != nil {
		return RolledBack{}, err
	}
	d := t.view().topDevice(o.LV)
	info, err := p.find(d)
	if err != nil || info == nil {
		return r, err
	}
	if info.Suspended { // a process died while it had suspended the device
		if err := p.dm.Resume(info.Name, d.udev); err != nil {
			return RolledBack{}, err
		}
	}
	return r, p.removeDevice(ctx, info.Name, d.udev)
}

// lastKept describes the last moment whose content is not lost.
func (r RolledBack) lastKept() string {
	if r.Newest.Name == "" { // it has no history of its own
		return "its last rollback"
	}
	return fmt.Sprintf("its newest snapshot %s, taken %s,", r.Newest.Name, r.Newest.Created.UTC().Format(time.RFC3339))
}

// rolledBack describes the rollback of o to l.
func (v *view) rolledBack(o *catalog.Volume, l *catalog.Layer) RolledBack {
	r := RolledBack{Volume: v.describe(o), Snapshot: v.describeSnapshot(l)}
	for _, x := range slices.Backward(o.Layers) {
		if x.Named {
			r.Newest = v.describeSnapshot(x)
			break
		}
	}
	return r
}

// renamed gives devices the names of their logical volumes, of which a rollback has
// renamed some: the new volume's device needs the old name. All other devices are
// left to the process that has the pool open. If one device cannot be renamed, the
// others still are.
func (p *Pool) renamed(ctx context.Context, v *view) error {
	all, err := p.dm.List()
	if err != nil {
		return err
	}
	k := kernel{} // without tables, because names do not depend on them
	for _, e := range all {
		if id, _, ours := catalog.SplitUUID(v.VG.ID, e.UUID); ours && v.Aside(v.VG.LVByID(lvm2.ID(id))) {
			k[e.UUID] = &kernelDevice{Info: dm.Info{Name: e.Name, UUID: e.UUID, Device: e.Device}, uuid: e.UUID}
		}
	}
	var errs []error
	steps, left := v.want(nil, use{}, running{}, k).names(k)
	for uuid, name := range left {
		errs = append(errs, fmt.Errorf("renaming %s: another device of the group has the name %s", k[uuid].Name, name))
	}
	for _, s := range steps {
		errs = append(errs, unlessGone((&carrier{Pool: p, view: v, k: k}).carryOut(ctx, []step{s})))
	}
	return errors.Join(errs...)
}
