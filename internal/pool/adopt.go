package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Adoption describes a logical volume that is to become a volume of the pool.
type Adoption struct {
	LV     string // a linear logical volume; LVM2's snapshots of it become snapshots of the volume
	Name   string // the CSI name; LV if empty
	Mode   Mode
	FSType string // type of its file system, for mode Filesystem
}

// Adopt makes a logical volume, and the snapshots that LVM2 took of it, a volume
// and snapshots of the pool. It changes only the metadata, under LVM2's lock. The
// volume may be in use. A driver may run: it follows within a moment, or when it
// starts.
//
// Each of LVM2's snapshots holds all changes of its origin since it was taken.
// Adopt adds one new layer without a name, the volume's live layer, and the adopted
// snapshots read through it. From then on an overwritten chunk is copied once
// instead of into each snapshot. The snapshots get the names of their logical
// volumes as CSI names.
//
// If the volume already belongs to the pool, and LVM2 took snapshots of it in
// addition, the volume's own snapshots stay.
//
// Errors: ErrNotFound, ErrConflict (a name is taken), ErrPrecondition (the volume
// is not linear, is being merged, moved or copied, is deleted, or a snapshot is
// open for writing), ErrNoSpace, ErrUnavailable.
func Adopt(ctx context.Context, c Config, o Options, a Adoption) error {
	if a.Mode != Filesystem && a.Mode != Block || a.Mode == Filesystem && a.FSType == "" {
		return fmt.Errorf("%w: volume mode %q with file system %q", ErrInvalid, a.Mode, a.FSType)
	}
	return offline(ctx, c, o, func(p *Pool) error {
		return p.underLock(ctx, lvm2.Exclusive, func(v *view) error {
			if _, err := p.once(ctx, v, func(t *edit) error { return p.adopt(t, a) }); err != nil {
				return fmt.Errorf("adopting logical volume %s/%s: %w", p.vgName, a.LV, err)
			}
			return nil
		})
	})
}

// adopt is the edit of Adopt.
func (p *Pool) adopt(t *edit, a Adoption) error {
	lv := t.VG.LV(a.LV)
	if lv == nil {
		return ErrNotFound
	}
	if err := t.Writable(); err != nil {
		return err
	}
	o := t.Volumes.Get(lv.ID)
	switch {
	case o == nil:
		var err error
		if o, err = p.adoptVolume(t, lv, a); err != nil {
			return err
		}
	case o.Deleted:
		return fmt.Errorf("%w: the volume is deleted, and its blocks are kept only for its snapshots", ErrPrecondition)
	case o.CopyOf != "":
		return fmt.Errorf("%w: the volume is still being copied", ErrPrecondition)
	}
	stores, err := p.foreignStores(t.view(), o)
	if err != nil {
		return err
	}
	stacked := []*lvm2.LV{o.LV}
	for _, s := range stores {
		stacked = append(stacked, s.lv)
	}
	if _, err := t.Kind(stacked...); err != nil || len(stores) == 0 {
		return err
	}
	// The pool's own live layer, if there is one, also holds all changes until now.
	top := o.NextOrder() + uint64(len(stores))
	for k, s := range stores {
		if err := p.adoptStore(t, o, s, top-uint64(len(stores)-k), top); err != nil {
			return err
		}
	}
	live, err := p.cut(t, o, "")
	if err != nil {
		return err
	}
	return t.MoveUp(live, o.Live(), top)
}

// adoptVolume tags a logical volume of LVM2's as a volume.
func (p *Pool) adoptVolume(t *edit, lv *lvm2.LV, a Adoption) (*catalog.Volume, error) {
	name := cmp.Or(a.Name, a.LV)
	switch {
	case !t.IsTheirs(lv):
		return nil, fmt.Errorf("%w: it belongs to the pool, but is not a volume", ErrPrecondition)
	case !slices.Contains(lv.Status, lvm2.StatusVisible) || !catalog.Linear(lv):
		return nil, fmt.Errorf("%w: only visible linear logical volumes can be adopted", ErrPrecondition)
	case len(a.LV) > catalog.MaxLVName:
		return nil, fmt.Errorf("%w: its name has %d bytes, but an id has room for only %d; rename it with lvrename", ErrPrecondition, len(a.LV), catalog.MaxLVName)
	case !catalog.FitsDevices(t.VG.Name, a.LV):
		return nil, fmt.Errorf("%w: its name and its group's name are together too long for device names, where each hyphen counts twice; rename it with lvrename", ErrPrecondition)
	case t.Named.Get(name) != nil:
		return nil, fmt.Errorf("%w: volume %q", ErrConflict, name)
	}
	if err := catalog.CheckName(name); err != nil {
		return nil, err
	}
	c := catalog.AsVolume(lv, name, a.Mode, a.FSType)
	catalog.Note(c, p.by, ReasonAdopted, "turned logical volume %s into volume %s", a.LV, name)
	return &catalog.Volume{LV: c, Name: name, Mode: a.Mode, FS: a.FSType, Formatted: true}, t.Put(c)
}

// foreignStore is a snapshot that LVM2 took.
type foreignStore struct {
	lv, hidden *lvm2.LV
	chunk      size.Sectors
}

// foreignStores returns the snapshots that LVM2 took of a volume, oldest first.
func (p *Pool) foreignStores(v *view, o *catalog.Volume) ([]foreignStore, error) {
	var out []foreignStore
	for _, hidden := range v.VG.LVs {
		s := catalog.SnapshotSegment(hidden)
		if s == nil || s.Origin != o.LV.Name {
			continue
		}
		store := v.VG.LV(s.COWStore)
		switch {
		case s.Merging:
			return nil, fmt.Errorf("%w: lvm2 is merging the snapshot %s into it", ErrPrecondition, s.COWStore)
		case store == nil:
			return nil, fmt.Errorf("%w: its snapshot %s has no store", ErrPrecondition, hidden.Name)
		case v.Layers.Get(store.ID) != nil:
			continue // a layer of the volume
		case !catalog.Linear(store):
			return nil, fmt.Errorf("%w: its snapshot %s is not linear", ErrPrecondition, store.Name)
		case len(store.Name) > catalog.MaxLVName:
			return nil, fmt.Errorf("%w: the name of its snapshot %s has %d bytes, but an id has room for only %d; rename it with lvrename",
				ErrPrecondition, store.Name, len(store.Name), catalog.MaxLVName)
		case v.Snapshots.Get(store.Name) != nil:
			return nil, fmt.Errorf("%w: snapshot %q", ErrConflict, store.Name)
		}
		if !v.IsTheirs(store) {
			return nil, fmt.Errorf("%w: the store of its snapshot %s already has tags of csi-dmsnap", ErrPrecondition, store.Name)
		}
		if err := cow.CheckChunk(s.ChunkSize.Bytes()); err != nil {
			return nil, fmt.Errorf("%w: its snapshot %s: %w", ErrPrecondition, store.Name, err)
		}
		if err := p.notWritten(v, store); err != nil {
			return nil, err
		}
		out = append(out, foreignStore{store, hidden, s.ChunkSize})
	}
	slices.SortStableFunc(out, func(a, b foreignStore) int { return a.lv.CreationTime.Compare(b.lv.CreationTime) })
	return out, nil
}

// notWritten returns an error if somebody may write to a snapshot, which is about
// to become read-only: the snapshot is open other than by read-only mounts.
func (p *Pool) notWritten(v *view, store *lvm2.LV) error {
	info, err := p.find(v.snapDevice(store))
	if err != nil || info == nil || info.OpenCount == 0 {
		return err
	}
	// All mounts of a file system together open its device once.
	readOnly, err := mountedReadOnly(info.Device)
	if err != nil {
		return err
	}
	if !readOnly || info.OpenCount > 1 {
		return fmt.Errorf("%w: its snapshot %s is open and may be written to; unmount it, or mount it read-only, until it is adopted", ErrPrecondition, store.Name)
	}
	return nil
}

// adoptStore makes a snapshot that LVM2 took a frozen layer.
func (p *Pool) adoptStore(t *edit, o *catalog.Volume, s foreignStore, order, over uint64) error {
	lost, fresh, err := p.stateOf(t.view(), s.lv)
	if err != nil {
		return err
	}
	if fresh {
		// LVM2 zeroes only the header; the rest may hold an earlier store's
		// content.
		ranges, err := catalog.Physical(s.lv)
		if err == nil {
			err = t.blankStore(ranges, s.chunk.Bytes())
		}
		if err != nil {
			return fmt.Errorf("blanking the COW store of %s, which was never active: %w", s.lv.Name, err)
		}
	}
	length := t.BytesOf(s.hidden).Sectors()
	if err := t.formatStore(&catalog.Layer{LV: s.lv, Chunk: s.chunk}); err != nil {
		return fmt.Errorf("preparing to freeze the COW store of %s: %w", s.lv.Name, err)
	}
	if err := t.Remove(s.hidden.ID); err != nil {
		return err
	}
	return t.AsLayer(t.VG.LVByID(s.lv.ID), o, catalog.Adopted{Order: order, Over: over, Length: length, Chunk: s.chunk, Lost: lost})
}

// stateOf reports whether the kernel dropped a snapshot that LVM2 took, and whether
// it never used the snapshot's store.
func (p *Pool) stateOf(v *view, lv *lvm2.LV) (lost, fresh bool, err error) {
	if p.dropped(v.snapDevice(lv)) {
		return true, false, nil
	}
	d := v.cowDevice(lv)
	info, err := p.find(d)
	if err == nil && info != nil && !info.Live { // left by an interrupted adoption of an older release
		err = p.takeDown(p.ctx, d)
	}
	if err != nil {
		return false, false, err
	}
	on := onDisks{view: v}
	defer on.close()
	store, err := on.store(lv, v.BytesOf(lv))
	if err != nil {
		return false, false, err
	}
	h, err := store.Header()
	if errors.Is(err, cow.ErrFresh) {
		return false, true, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("snapshot %s: %w", lv.Name, err)
	}
	return !h.Valid, false, nil
}
