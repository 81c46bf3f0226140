package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// addFlat allocates the extents of a flat store, and opens the device for writing it. It uses
// the extents reserved for the store, if there are some.
func (p *Pool) addFlat(ctx context.Context, w *flatWork) error {
	return p.do(ctx, &change{what: "make a flat store", edit: func(t *edit) error {
		o := t.Volumes.Get(w.flat.Of)
		if o == nil || !w.same(t.view()) {
			return errFlatChanged
		}
		if err := errors.Join(t.Writable(), p.roomForText(t.view())); err != nil {
			return err
		}
		n, lv := t.Extents(w.layout.Metadata()), t.KeptOrNew(w.flat)
		if more := n - min(n, lv.Size()); more > 0 {
			if err := p.enlargeFlat(t, o, lv, more); err != nil {
				return err
			}
		}
		if w.flat.LV != nil { // left over from an earlier attempt of this edit
			p.facts.flats.drop(w.flat.LV.ID)
		}
		w.flat.LV = lv
		p.facts.flats.put(lv.ID, time.Time{})
		return t.Put(lv)
	}, act: func(ctx context.Context, v *view) error {
		w.made = v.VG
		d := v.cowDevice(w.flat.LV)
		table, err := v.linearTable(w.flat.LV)
		if err != nil {
			return err
		}
		if _, err = p.single(ctx, v, d, table, false); err == nil {
			w.file, err = os.OpenFile(p.dm.Node(d.name), os.O_WRONLY|unix.O_DIRECT, 0)
		}
		return err
	}})
}

// enlargeFlat gives lv, a flat store of o's history, more extents.
func (p *Pool) enlargeFlat(t *edit, o *catalog.Volume, lv *lvm2.LV, more lvm2.Extents) error {
	kind, err := t.KindOf(o)
	if err != nil {
		return err
	}
	// Leave room for live stores, or snapshots are lost.
	spare := p.reserve(t.view()) / 2
	if slices.ContainsFunc(o.Flats, func(f *catalog.Flat) bool { return f.LV.ID == lv.ID && t.ForkNeeds(o, f) }) {
		spare = 0 // an existing fork can be read only through this store
	}
	if free := t.FreeOn(kind).Size(); free < more+spare {
		return fmt.Errorf("%w: %d more extents are needed for as long as it is read, but volume group %s has %d free, of which %d are kept for growing the stores of snapshots; delete volumes or newer snapshots, or extend the volume group",
			ErrNoSpace, more, t.VG.Name, free, spare)
	}
	ranges, err := t.AllocateMore(lv.Segments, kind, more, catalog.HighEnd)
	if err != nil {
		return err
	}
	lv.Segments = catalog.AppendExtents(lv.Segments, ranges...)
	return nil
}

// flatNeed returns how many extents, beyond the reserved ones, a fork of layer l in o's
// history needs for a flat store. It returns 0 if the kernel can read l without one, or if
// there is one already.
func (p *Pool) flatNeed(v *view, o *catalog.Volume, l *catalog.Layer) lvm2.Extents {
	if l == nil || v.Layers.Get(l.LV.ID) == nil || v.Depth(o, l) <= p.deepest {
		return 0
	}
	has := lvm2.Extents(0)
	if kept := v.KeptFor(l.LV.ID); kept != nil {
		if p.flatWriting(kept) {
			return 0
		}
		has = kept.LV.Size()
	}
	var layers []cow.Layer
	for _, x := range o.Path(l) {
		if x.Snap != nil {
			break
		}
		used := x.Used
		if !x.Trimmed {
			used = sectors(v, x.LV.Size())
		}
		layers = append(layers, cow.Layer{Chunk: x.Chunk.Bytes(), Length: x.Length, Used: used})
	}
	if len(layers) == 0 {
		return 0
	}
	need := v.Extents(cow.NewFlat(cow.Smallest(layers), cow.MostMerged(layers)).Metadata())
	return need - min(need, has)
}

// keepForFlat reserves extents for a flat store without which a fork of a layer cannot be
// read, in addition to extents reserved before. They stay reserved until all forks of the
// layer are hydrated.
func (p *Pool) keepForFlat(t *edit, layer lvm2.ID) error {
	l := t.Layers.Get(layer)
	if l == nil {
		return nil // it is being cut
	}
	o := t.Volumes.Get(l.Of)
	n := p.flatNeed(t.view(), o, l)
	if n == 0 {
		return nil
	}
	kind, err := t.KindOf(o)
	if err != nil {
		return err
	}
	path := o.Path(l)
	lv := t.KeptOrNew(&catalog.Flat{Of: l.Of, Reads: layer, Over: path[len(path)-1].LV.ID, Chunk: l.Chunk})
	ranges, err := t.AllocateMore(lv.Segments, kind, n, catalog.HighEnd)
	if err != nil {
		return err
	}
	lv.Segments = catalog.AppendExtents(lv.Segments, ranges...)
	return t.Put(lv)
}

// awaited reports whether f is being written, or is written and waits for its first reader.
func (p *Pool) awaited(v *view, f *catalog.Flat) bool {
	written, asked := p.facts.flats.get(f.LV.ID)
	wait := flatSoon
	if v.Pinned.Has(f.Reads) {
		wait = flatWait
	}
	return asked && (written.IsZero() || time.Since(written) < wait)
}

// notAwaited records that f no longer waits for its first reader. It does nothing while f is
// being written.
func (p *Pool) notAwaited(f *catalog.Flat) {
	if written, asked := p.facts.flats.get(f.LV.ID); asked && !written.IsZero() {
		p.facts.flats.drop(f.LV.ID)
	}
}

// dropFlats turns unused flat stores of a volume, and of the volumes that it reads through,
// into trash. The caller holds the volume's key.
func (p *Pool) dropFlats(ctx context.Context, lv string) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(v.Family(lv), func(lv string) bool { o := v.VolumeByLV(lv); return o != nil && len(o.Flats) > 0 }) {
		return nil
	}
	defer p.wiper.wake()
	return p.do(ctx, &change{what: "delete idle flat stores of volume " + lv, edit: func(t *edit) error {
		for _, lv := range t.Family(lv) {
			if o := t.VolumeByLV(lv); o != nil {
				if err := p.discardUnread(t, o); err != nil {
					return err
				}
			}
		}
		return nil
	}, act: func(ctx context.Context, v *view) error {
		p.facts.tables.keep(func(id lvm2.ID) bool { return v.VG.LVByID(id) != nil })
		return p.sweep(ctx, v)
	}})
}

// idleFlat returns a flat store of o that nobody reads, awaits or needs; nil if there is none.
// has are the UUIDs of the existing devices.
func (p *Pool) idleFlat(v *view, o *catalog.Volume, has map[string]bool) *catalog.Flat {
	if v.Unclear != nil {
		return nil
	}
	for _, f := range o.Flats {
		l := v.Layers.Get(f.Reads)
		read := l != nil && has[v.snapDevice(l.LV).uuid] && has[v.cowDevice(f.LV).uuid]
		if !read && !p.awaited(v, f) && !v.ForkNeeds(o, f) {
			return f
		}
	}
	return nil
}

// dropIdleFlats is dropFlats for a volume with an idle flat store. It returns ErrInUse if the
// store stays, so that the caretaker pauses before the next attempt.
func (p *Pool) dropIdleFlats(ctx context.Context, lv string) error {
	if err := p.dropFlats(ctx, lv); err != nil {
		return err
	}
	v, err := p.latest()
	if err != nil {
		return err
	}
	has, err := p.allUUIDs()
	if err != nil {
		return err
	}
	if o := v.VolumeByLV(lv); o != nil {
		if f := p.idleFlat(v, o, has); f != nil {
			return fmt.Errorf("flat store %s/%s, which nobody reads any more: %w: its device is open, or lvm2 has changed it", v.VG.Name, f.LV.Name, ErrInUse)
		}
	}
	return nil
}

// giveUpUnread deletes, in the background, written flat stores without a reader, because a
// live store needs their extents. A caller that awaits such a store has to ask again. Flat
// stores that forks need stay.
func (p *Pool) giveUpUnread() {
	v := p.current.Load()
	for _, o := range v.Volumes.All() {
		unread := false
		for _, f := range o.Flats {
			if written, asked := p.facts.flats.get(f.LV.ID); asked && !written.IsZero() && !v.ForkNeeds(o, f) {
				p.facts.flats.drop(f.LV.ID)
				unread = true
			}
		}
		if unread {
			p.caretaker.attend(o, "flats", attendPause, p.dropIdleFlats)
		}
	}
}

// discardIdle turns the unused flat stores of all volumes into trash when a pool is opened.
func (p *Pool) discardIdle(t *edit) error {
	for _, o := range t.Volumes.All() {
		if err := p.discardUnread(t, o); err != nil {
			return err
		}
	}
	return nil
}

// discardUnread turns unused flat stores of o into trash: stores without a snapshot device
// above them that nobody awaits and no fork needs.
func (p *Pool) discardUnread(t *edit, o *catalog.Volume) error {
	if t.Unclear != nil {
		return nil
	}
	for _, f := range o.Flats {
		if p.awaited(t.view(), f) || t.ForkNeeds(o, f) {
			continue
		}
		info, err := p.find(t.view().cowDevice(f.LV))
		if err != nil {
			return err
		}
		if now := t.VG.LVByID(f.LV.ID); now != nil && catalog.Linear(now) && (info == nil || info.OpenCount == 0) {
			if err := t.Discard(now); err != nil {
				return err
			}
		}
	}
	return nil
}
