package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

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
func (p *Pool) rollbackOf(v *view, spec RollbackSpec) (*volume, *layer, error) {
	o, err := v.changeable(spec.Volume)
	if err != nil {
		return nil, nil, err
	}
	if o.readOnly {
		return nil, nil, fmt.Errorf("%w: the volume is read-only and never changes", ErrPrecondition)
	}
	l := v.snapshotByLV(spec.Snapshot)
	if l == nil {
		return nil, nil, fmt.Errorf("snapshot %s/%s: %w", v.vg.Name, spec.Snapshot, ErrNotFound)
	}
	of := v.volumes[l.of]
	if of.known() != o.lv.Name {
		return nil, nil, fmt.Errorf("%w: snapshot %s belongs to volume %s", ErrPrecondition, l.lv.Name, of.known())
	}
	if why := of.theirs(); why != "" {
		return nil, nil, fmt.Errorf("%w: %s has the blocks of snapshot %s: %s", ErrPrecondition, of.lv.Name, l.lv.Name, why)
	}
	if v.lostSnapshot(l) {
		return nil, nil, fmt.Errorf("snapshot %s/%s: %w", v.vg.Name, l.lv.Name, ErrLost)
	}
	if err := errors.Join(v.writable(), p.roomForText(v), p.intact(v, of, l), p.unmounted(v, of, l)); err != nil {
		return nil, nil, err
	}
	if err := p.unused(v, o); err != nil {
		return nil, nil, err
	}
	kind, err := v.kindOf(of)
	if err != nil {
		return nil, nil, err
	}
	return o, l, p.checkRoom(v, kind, o.lv.Size()+p.forkStore(v, l.length.Bytes())+p.flatNeed(v, of, l))
}

// unused returns an error if the volume is in use: its device is mounted, or bound
// to a place where a pod will open it.
func (p *Pool) unused(v *view, o *volume) error {
	info, err := p.find(v.topDevice(o.lv))
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
	o, l, err := p.rollbackOf(t.view, spec)
	if err != nil {
		return RolledBack{}, err
	}
	r := t.rolledBack(o, l)
	kind, err := t.kindOf(t.volumes[l.of])
	if err != nil {
		return RolledBack{}, err
	}
	ranges, err := t.allocateOn(kind, o.lv.Size(), lowEnd)
	if err != nil {
		return RolledBack{}, err
	}
	// Keep the name and all other properties of the volume.
	lv := o.lv.Clone()
	lv.ID, lv.CreationTime, lv.CreationHost = lvm2.NewID(), time.Now(), p.host.Hostname
	note(lv, p.by, ReasonRolledBack, "rolled the volume back to snapshot %s, taken %s; what was written since %s is lost",
		l.name, l.created.UTC().Format(time.RFC3339), r.lastKept())
	lv.Segments = appendExtents(nil, ranges...)
	setUnknown(lv, logicalOutside(t.clean, 0, ranges))
	if r.Former, err = t.setAside(o); err != nil {
		return RolledBack{}, err
	}
	store := p.forkStore(t.view, l.length.Bytes())
	if err := p.asFork(t, lv, l.lv.ID, contentAt(o, l), store); err != nil {
		return RolledBack{}, err
	}
	d := t.topDevice(o.lv)
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
func (v *view) rolledBack(o *volume, l *layer) RolledBack {
	r := RolledBack{Volume: v.describe(o), Snapshot: v.describeSnapshot(l)}
	for _, x := range slices.Backward(o.layers) {
		if x.named {
			r.Newest = v.describeSnapshot(x)
			break
		}
	}
	return r
}

// setAside takes o's names away. It hides o while its snapshots need its blocks,
// and otherwise discards o. It returns o's new name; "" if o was discarded.
func (t *edit) setAside(o *volume) (string, error) {
	if t.disposable(o) {
		return "", errors.Join(t.discard(storesOf(o.layers)...), t.discardBlocks(o))
	}
	name, err := t.lvName("former-" + o.lv.Name)
	if err != nil {
		return "", err
	}
	c := o.lv.Clone()
	c.Name = name
	c.Tags = append(dropTags(c.Tags, tagName), tag(tagDeleted), tag(tagFormer, o.lv.Name))
	handOff(c)
	if err := t.put(c); err != nil {
		return "", err
	}
	if live := o.live(); live != nil { // LVM2 refers to the origin by its name
		hidden := live.snap.Clone()
		hidden.Segments[0].Snapshot.Origin = name
		if err := t.put(hidden); err != nil {
			return "", err
		}
	}
	return name, nil
}

// known returns the name of the logical volume to which o's snapshots belong for
// users: o's own name, unless a rollback gave that name to another logical volume.
func (v *volume) known() string {
	if v.former != "" {
		return v.former
	}
	return v.lv.Name
}

// snapshotsOf returns o's snapshots, oldest first, including those from before
// rollbacks.
func (v *view) snapshotsOf(o *volume) []*layer {
	var out []*layer
	for _, l := range v.snapshots {
		if v.volumes[l.of].known() == o.lv.Name {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b *layer) int { return a.created.Compare(b.created) })
	return out
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
		if id, _, ours := splitUUID(v.vg.ID, e.UUID); ours && v.aside(v.vg.LVByID(lvm2.ID(id))) {
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

// aside reports whether a rollback may have renamed a logical volume.
func (v *view) aside(lv *lvm2.LV) bool {
	if lv == nil {
		return false
	}
	o := v.volumes[lv.ID]
	return v.isTrash(lv) || o != nil && o.former != ""
}
