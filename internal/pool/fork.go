package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// A fork is a volume with the content of a snapshot. It reads through the snapshot until the
// driver has copied the whole content into the volume's own extents (hydration). The fork can
// be used in the meantime:
//
//	pool-vol        linear      the hydrated beginning: the volume's own blocks
//	                linear      the window that is being copied: pool-vol-window0 or -window1
//	                linear      the rest: pool-vol-fork
//	                linear      the part beyond the snapshot's end: the volume's own blocks
//	pool-vol-windowN  mirror    from pool-vol-fork to the volume's own blocks
//	pool-vol-fork   snapshot    <pool-snapK> <pool-store-cow> PO <chunk>
//	pool-store-cow  linear      writes to parts that are not hydrated
//
// If the volume has snapshots of its own, pool-vol-real has the table of pool-vol.

// If the pool has the space, the store of a new fork bridges a pause of the driver: it takes
// writes at the highest rate for driverPause, but no more than a pausePart-th of the fork's
// length.
const (
	driverPause = 2 * time.Second
	pausePart   = 4
)

// layerFork is the name layer of the device by which a fork reads through its snapshot.
const layerFork = "fork"

// createFrom makes a volume with the content of a snapshot, or of another volume, which it
// cuts first. The new volume is a fork or a reader, and can be used immediately.
func (p *Pool) createFrom(ctx context.Context, spec VolumeSpec) (string, error) {
	what := fmt.Sprintf("create volume %q from %s %s", spec.Name, spec.Source.Kind, spec.Source.LV)
	var name string
	err := p.do(ctx, &change{what: what, edit: func(t *edit) error {
		if o, err := t.Existing(spec); err != nil || o != nil {
			if o != nil {
				name = o.LV.Name
			}
			return err
		}
		from, n, err := p.copyOf(t, spec)
		if err == nil && from.Layer == nil {
			return p.checkClone(t, spec, from, n) // check before the cut freezes the source
		}
		if err == nil {
			name, err = p.addCopy(t, spec, from, n, from.Layer.LV.ID)
		}
		return err
	}})
	if err == nil && name == "" {
		err = p.take(ctx, what, spec.Source.LV, "", func(t *edit, c catalog.CutLayer) error {
			from, n, err := p.copyOf(t, spec)
			if err != nil {
				return err
			}
			if name, err = p.addCopy(t, spec, from, n, c.Layer); err != nil {
				return err
			}
			return t.Record(c, "")
		})
	}
	if err != nil {
		return "", err
	}
	return name, nil
}

// copyOf finds the source of the volume that spec asks for, and the volume's size in extents.
func (p *Pool) copyOf(t *edit, spec VolumeSpec) (from catalog.Original, n lvm2.Extents, err error) {
	from, err = t.ContentOf(spec)
	if err == nil && from.Layer != nil {
		err = errors.Join(p.intact(t.view(), from.Volume, from.Layer), p.unmounted(t.view(), from.Volume, from.Layer))
	}
	if err == nil {
		n, err = t.CopyExtents(spec, from)
	}
	if err == nil && spec.Shows() {
		err = errors.Join(t.Showable(spec, from, n), t.RoomForReader(spec.Source))
	}
	return from, n, err
}

// checkClone returns an error if there is no room for a clone of n extents.
func (p *Pool) checkClone(t *edit, spec VolumeSpec, from catalog.Original, n lvm2.Extents) error {
	if _, err := p.cuttable(t.view(), from.Volume); err != nil {
		return err
	}
	kind, err := t.KindOf(from.Volume)
	switch {
	case err != nil || spec.ReadOnly:
		return err
	case !spec.Transient:
		n += p.forkStore(t.view(), from.Length)
	}
	return p.checkRoom(t.view(), kind, n+p.firstStore(t.view(), from.Length, p.config.Chunk))
}

// addCopy adds the volume that spec asks for, with n extents and the content of a layer. It
// returns the name of the logical volume.
func (p *Pool) addCopy(t *edit, spec VolumeSpec, from catalog.Original, n lvm2.Extents, layer lvm2.ID) (string, error) {
	add := p.newFork
	if spec.Shows() {
		add = p.newReader
	}
	lv, err := add(t, spec, n, layer, from)
	if err != nil {
		return "", err
	}
	return lv.Name, nil
}

// newFork adds a fork of a layer with n extents.
func (p *Pool) newFork(t *edit, spec VolumeSpec, n lvm2.Extents, layer lvm2.ID, from catalog.Original) (*lvm2.LV, error) {
	store := p.forkStore(t.view(), from.Length)
	kind, err := t.KindOf(from.Volume)
	if err != nil {
		return nil, err
	}
	lv, err := p.newVolume(t, spec, kind, n, store+p.flatNeed(t.view(), from.Volume, from.Layer))
	if err != nil {
		return nil, err
	}
	return lv, p.asFork(t, lv, layer, from, store)
}

// unmounted returns an error if the device of a snapshot, or of a layer that it reads through,
// is mounted. The kernel lets no other device use a mounted device.
func (p *Pool) unmounted(v *view, o *catalog.Volume, l *catalog.Layer) error {
	for _, x := range o.Path(l) {
		info, err := p.find(v.snapDevice(x.LV))
		if err != nil {
			return err
		}
		if info == nil || info.OpenCount == 0 {
			continue
		}
		if at, err := mountPoint(info.Device); err != nil || at != "" {
			return errors.Join(err, fmt.Errorf("snapshot %s/%s: %w: the device of %s is mounted at %s; unmount it first", v.VG.Name, l.LV.Name, ErrInUse, x.LV.Name, at))
		}
	}
	return nil
}

// forkStore returns the first size of a fork's store, in extents. The store must never be full, or writers
// get errors, so it is at least large enough to grow in time, whatever size is configured
// for snapshots. The store is needed only until the fork is hydrated, and must be wiped
// then, so it is only large enough to bridge a short pause of the driver.
func (p *Pool) forkStore(v *view, length size.Bytes) lvm2.Extents {
	chunk := p.config.Chunk.Sectors()
	least := v.Extents(leastStore(chunk, p.peak()).Bytes())
	ample := min(v.Extents(min(p.peak().in(driverPause).Bytes(), length/pausePart)), v.Free.Size()/8)
	return min(v.Extents(cow.LargestUseful(length, p.config.Chunk)), max(least, ample))
}

// asFork turns lv, which has its extents, into a fork that reads its beginning through the
// layer origin, with the content from. n is the size of its store in extents.
func (p *Pool) asFork(t *edit, lv *lvm2.LV, origin lvm2.ID, from catalog.Original, n lvm2.Extents) error {
	catalog.ReadThrough(lv, origin)
	// Nobody can read the extents before they are hydrated, and then they have the source's
	// content, including its unknown extents. Extents beyond the source's end keep their old
	// bytes.
	copied := catalog.RangeSet{{Start: 0, Count: t.Extents(from.Length)}}
	tail, err := catalog.UnknownOf(lv)
	if err != nil {
		return err
	}
	tail = tail.Subtract(copied)
	if len(tail) > 0 {
		if err := t.blankTail(lv, copied.Size()); err != nil {
			return err
		}
	}
	catalog.SetContent(lv, from.Formatted, tail.Union(from.Unknown.Intersect(copied)))
	kind, err := t.Kind(lv)
	if err != nil {
		return err
	}
	return errors.Join(t.Put(lv), p.addForkStore(t, lv, kind, n, p.config.Chunk), p.keepForFlat(t, origin))
}

// addForkStore adds the store for writes to lv, while lv reads through a snapshot, on disks
// of a kind.
func (p *Pool) addForkStore(t *edit, lv *lvm2.LV, kind size.Bytes, n lvm2.Extents, chunk size.Bytes) error {
	ranges, err := t.AllocateOn(kind, n, catalog.HighEnd)
	if err != nil {
		return err
	}
	if err := t.blankStore(ranges, chunk); err != nil {
		return fmt.Errorf("preparing the store of a fork: %w", err)
	}
	name, err := t.LVName("fork-" + lv.Name)
	if err != nil {
		return err
	}
	store := catalog.NewForkStore(name, lv, chunk.Sectors())
	store.CreationHost = p.host.Hostname
	store.Segments = catalog.AppendExtents(nil, ranges...)
	return t.Put(store)
}

// sourceKeys returns the key of the volume whose history has spec's source.
func (p *Pool) sourceKeys(spec VolumeSpec) ([]string, error) {
	switch spec.Source.Kind {
	case FromNothing:
		return nil, nil
	case FromVolume:
		return []string{lvKey(spec.Source.LV)}, nil
	}
	v, err := p.latest()
	if err != nil {
		return nil, err
	}
	if l := v.SnapshotByLV(spec.Source.LV); l != nil {
		return []string{lvKey(v.Volumes.Get(l.Of).LV.Name)}, nil
	}
	return nil, nil // a repeated call may find the volume even if its source is gone
}
