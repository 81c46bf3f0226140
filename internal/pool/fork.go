package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

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

// fork is the store of a fork: a logical volume of role fork that takes the fork's writes.
type fork struct {
	lv    *lvm2.LV
	of    lvm2.ID
	chunk size.Sectors
	odd   error // set if a tag is not understood
}

// forked reports whether v is a fork that is not hydrated yet.
func (v *volume) forked() bool { return v.copyOf != "" }

// origin returns the layer that the fork o reads through, and the volume of the layer.
// Errors: ErrLost if the layer or the fork's store was removed.
func (v *view) origin(o *volume) (*layer, *volume, error) {
	l := v.layers[o.copyOf]
	if l == nil {
		return nil, nil, fmt.Errorf("volume %s/%s: %w: the layer %s that it reads through was removed", v.vg.Name, o.lv.Name, ErrLost, o.copyOf)
	}
	if o.fork == nil {
		return nil, nil, fmt.Errorf("volume %s/%s: %w: the store that holds its writes was removed", v.vg.Name, o.lv.Name, ErrLost)
	}
	return l, v.volumes[l.of], v.circular(o)
}

// root returns the root of the family of lv: the volume that lv reads through, directly or
// indirectly, and that reads through no other volume. The devices of a family depend on each
// other.
func (v *view) root(lv string) string {
	all := v.family(lv)
	return all[len(all)-1]
}

// family returns the name of lv, followed by the names of the volumes that it reads through.
func (v *view) family(lv string) []string {
	out := []string{lv}
	for o := v.volumeByLV(lv); o != nil && o.from() != ""; {
		l := v.layers[o.from()]
		if l == nil {
			break
		}
		o = v.volumes[l.of]
		if slices.Contains(out, o.lv.Name) { // a circle, made by changed tags
			break
		}
		out = append(out, o.lv.Name)
	}
	return out
}

// circular returns an error if o reads through itself. Only tags that somebody has changed
// can say so, and no devices can follow them.
func (v *view) circular(o *volume) error {
	seen := map[*volume]bool{}
	for x := o; x != nil && x.from() != ""; {
		if seen[x] {
			return fmt.Errorf("volume %s/%s: %w: its tags were changed so that it reads through itself; restore them with vgcfgrestore", v.vg.Name, o.lv.Name, ErrPrecondition)
		}
		seen[x] = true
		l := v.layers[x.from()]
		if l == nil {
			break
		}
		x = v.volumes[l.of]
	}
	return nil
}

// original is the source of a new volume: a layer, or a volume that must be cut first.
type original struct {
	volume    *volume
	layer     *layer // nil if a layer must be cut
	length    size.Bytes
	asked     size.Bytes // size in the request that led to length
	formatted bool       // it has had a file system, or is a block volume
	unknown   rangeSet   // extents that may hold an earlier owner's bytes
}

// contentAt returns the content of o at the cut of l.
func contentAt(o *volume, l *layer) original {
	return original{volume: o, layer: l, length: l.length.Bytes(), asked: asked(l.asked, l.length.Bytes()), formatted: !l.blank, unknown: l.unknown}
}

// createFrom makes a volume with the content of a snapshot, or of another volume, which it
// cuts first. The new volume is a fork or a reader, and can be used immediately.
func (p *Pool) createFrom(ctx context.Context, spec VolumeSpec) (string, error) {
	what := fmt.Sprintf("create volume %q from %s %s", spec.Name, spec.Source.Kind, spec.Source.LV)
	var name string
	err := p.do(ctx, &change{what: what, edit: func(t *edit) error {
		if o, err := t.existing(spec); err != nil || o != nil {
			if o != nil {
				name = o.lv.Name
			}
			return err
		}
		from, n, err := p.copyOf(t, spec)
		if err == nil && from.layer == nil {
			return p.checkClone(t, spec, from, n) // check before the cut holds any writer
		}
		if err == nil {
			name, err = p.addCopy(t, spec, from, n, from.layer.lv.ID)
		}
		return err
	}})
	if err == nil && name == "" {
		err = p.take(ctx, what, spec.Source.LV, "", func(t *edit, c cutLayer) error {
			from, n, err := p.copyOf(t, spec)
			if err != nil {
				return err
			}
			if name, err = p.addCopy(t, spec, from, n, c.layer); err != nil {
				return err
			}
			return t.record(c, "")
		})
	}
	if err != nil {
		return "", err
	}
	return name, nil
}

// copyOf finds the source of the volume that spec asks for, and the volume's size in extents.
func (p *Pool) copyOf(t *edit, spec VolumeSpec) (from original, n lvm2.Extents, err error) {
	from, err = t.contentOf(spec)
	if err == nil && from.layer != nil {
		err = errors.Join(p.intact(t.view, from.volume, from.layer), p.unmounted(t.view, from.volume, from.layer))
	}
	if err == nil {
		n, err = t.copyExtents(spec, from)
	}
	if err == nil && spec.shows() {
		err = errors.Join(t.showable(spec, from, n), t.roomForReader(spec.Source))
	}
	return from, n, err
}

// shows reports whether the volume is to be a reader, which shows its source and is never
// copied.
func (s VolumeSpec) shows() bool { return s.ReadOnly || s.Transient }

// checkClone returns an error if there is no room for a clone of n extents.
func (p *Pool) checkClone(t *edit, spec VolumeSpec, from original, n lvm2.Extents) error {
	if _, err := p.cuttable(t.view, from.volume); err != nil {
		return err
	}
	kind, err := t.kindOf(from.volume)
	switch {
	case err != nil || spec.ReadOnly:
		return err
	case !spec.Transient:
		n += p.forkStore(t.view, from.length)
	}
	return p.checkRoom(t.view, kind, n+p.firstStore(t.view, from.length, p.config.Chunk))
}

// addCopy adds the volume that spec asks for, with n extents and the content of a layer. It
// returns the name of the logical volume.
func (p *Pool) addCopy(t *edit, spec VolumeSpec, from original, n lvm2.Extents, layer lvm2.ID) (string, error) {
	add := p.newFork
	if spec.shows() {
		add = p.newReader
	}
	lv, err := add(t, spec, n, layer, from)
	if err != nil {
		return "", err
	}
	return lv.Name, nil
}

// newFork adds a fork of a layer with n extents.
func (p *Pool) newFork(t *edit, spec VolumeSpec, n lvm2.Extents, layer lvm2.ID, from original) (*lvm2.LV, error) {
	store := p.forkStore(t.view, from.length)
	kind, err := t.kindOf(from.volume)
	if err != nil {
		return nil, err
	}
	lv, err := p.newVolume(t, spec, kind, n, store+p.flatNeed(t.view, from.volume, from.layer))
	if err != nil {
		return nil, err
	}
	return lv, p.asFork(t, lv, layer, from, store)
}

// unmounted returns an error if the device of a snapshot, or of a layer that it reads through,
// is mounted. The kernel lets no other device use a mounted device.
func (p *Pool) unmounted(v *view, o *volume, l *layer) error {
	for _, x := range o.path(l) {
		info, err := p.find(v.snapDevice(x.lv))
		if err != nil {
			return err
		}
		if info == nil || info.OpenCount == 0 {
			continue
		}
		if at, err := mountPoint(info.Device); err != nil || at != "" {
			return errors.Join(err, fmt.Errorf("snapshot %s/%s: %w: the device of %s is mounted at %s; unmount it first", v.vg.Name, l.lv.Name, ErrInUse, x.lv.Name, at))
		}
	}
	return nil
}

// forkStore returns the first size of a fork's store. The store must never be full, or writers
// get errors, so it is at least large enough to grow in time, whatever size is configured
// for snapshots. The store is needed only until the fork is hydrated, and must be wiped
// then, so it is only large enough to bridge a short pause of the driver.
func (p *Pool) forkStore(v *view, length size.Bytes) lvm2.Extents {
	chunk := p.config.Chunk.Sectors()
	least := v.extents(growLine(chunk, p.peak(), 0).Bytes())
	ample := min(v.extents(min(p.peak().in(driverPause).Bytes(), length/pausePart)), v.free.size()/8)
	return min(v.extents(cow.LargestUseful(length, p.config.Chunk)), max(least, ample))
}

// asFork turns lv, which has its extents, into a fork that reads its beginning through the
// layer origin, with the content from. n is the size of its store in extents.
func (p *Pool) asFork(t *edit, lv *lvm2.LV, origin lvm2.ID, from original, n lvm2.Extents) error {
	readThrough(lv, origin)
	// Nobody can read the extents before they are hydrated, and then they have the source's
	// content, including its unknown extents. Extents beyond the source's end keep their old
	// bytes.
	copied := rangeSet{{Start: 0, Count: t.extents(from.length)}}
	tail, err := unknownOf(lv)
	if err != nil {
		return err
	}
	tail = tail.subtract(copied)
	if len(tail) > 0 {
		if err := t.blankTail(lv, copied.size()); err != nil {
			return err
		}
	}
	setContent(lv, from.formatted, tail.union(from.unknown.intersect(copied)))
	kind, err := t.kind(lv)
	if err != nil {
		return err
	}
	return errors.Join(t.put(lv), p.addForkStore(t, lv, kind, n, p.config.Chunk), p.keepForFlat(t, origin))
}

// addForkStore adds the store for writes to lv, while lv reads through a snapshot, on disks
// of a kind.
func (p *Pool) addForkStore(t *edit, lv *lvm2.LV, kind size.Bytes, n lvm2.Extents, chunk size.Bytes) error {
	ranges, err := t.allocateOn(kind, n, highEnd)
	if err != nil {
		return err
	}
	if err := t.blankStore(ranges, chunk); err != nil {
		return fmt.Errorf("preparing the store of a fork: %w", err)
	}
	name, err := t.lvName("fork-" + lv.Name)
	if err != nil {
		return err
	}
	store := newForkStore(name, lv, chunk.Sectors())
	store.CreationHost = p.host.Hostname
	store.Segments = appendExtents(nil, ranges...)
	return t.put(store)
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
	if l := v.snapshotByLV(spec.Source.LV); l != nil {
		return []string{lvKey(v.volumes[l.of].lv.Name)}, nil
	}
	return nil, nil // a repeated call may find the volume even if its source is gone
}

// contentOf finds the content of spec's source.
func (v *view) contentOf(spec VolumeSpec) (from original, err error) {
	var l *layer
	var o *volume
	if spec.Source.Kind == FromSnapshot {
		if l = v.snapshotByLV(spec.Source.LV); l == nil {
			return from, fmt.Errorf("snapshot %s/%s: %w", v.vg.Name, spec.Source.LV, ErrNotFound)
		}
		o = v.volumes[l.of]
		if why := o.theirs(); why != "" {
			return from, fmt.Errorf("snapshot %s/%s: %w: volume %s: %s", v.vg.Name, l.lv.Name, ErrPrecondition, o.lv.Name, why)
		}
		if v.lostSnapshot(l) {
			return from, fmt.Errorf("snapshot %s/%s: %w", v.vg.Name, l.lv.Name, ErrLost)
		}
		from = contentAt(o, l)
	} else {
		if o, err = v.changeable(spec.Source.LV); err != nil {
			return from, err
		}
		from = original{volume: o, length: v.bytesOf(o.lv), asked: asked(o.asked, v.bytesOf(o.lv)), formatted: o.formatted, unknown: o.unknown}
	}
	if spec.Mode == Filesystem && o.mode == Filesystem && spec.FSType != o.fs {
		return from, fmt.Errorf("%w: file system %s requested, but the source has %s", ErrInvalid, spec.FSType, o.fs)
	}
	from.formatted = from.formatted || spec.Mode == Block || o.mode == Block
	return from, v.modeChange(spec, from)
}

// modeChange returns an error for a change of mode that would show an earlier owner's bytes. A
// file system covers blocks that it never wrote, and a block volume may not be wiped yet.
func (v *view) modeChange(spec VolumeSpec, from original) error {
	if spec.Mode != from.volume.mode && len(from.unknown) > 0 {
		return fmt.Errorf("volume %s/%s: %w: it cannot be copied to a %s volume: %s", v.vg.Name, from.volume.lv.Name, ErrPrecondition, spec.Mode, from.notWiped())
	}
	return nil
}
