package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// newFlat returns the logical volume of a flat store, without extents.
func newFlat(f *flat) *lvm2.LV {
	lv := newLV("", roleFlat, tag(tagOf, string(f.of)), tag(tagReads, string(f.reads)), tag(tagOver, string(f.over)),
		tag(tagChunk, number(f.chunk)))
	lv.Name = flatPrefix + string(lv.ID)
	lv.Status = []string{lvm2.StatusRead, lvm2.StatusVisible}
	handOff(lv)
	return lv
}

// addFlat allocates the extents of a flat store, and opens the device for writing it. It uses
// the extents reserved for the store, if there are some.
func (p *Pool) addFlat(ctx context.Context, w *flatWork) error {
	return p.do(ctx, &change{what: "make a flat store", edit: func(t *edit) error {
		o := t.volumes[w.flat.of]
		if o == nil || !w.same(t.view) {
			return errFlatChanged
		}
		if err := errors.Join(t.writable(), p.roomForText(t.view)); err != nil {
			return err
		}
		n, lv := t.extents(w.layout.Metadata()), t.keptOrNew(w.flat)
		if more := n - min(n, lv.Size()); more > 0 {
			if err := p.enlargeFlat(t, o, lv, more); err != nil {
				return err
			}
		}
		if w.flat.lv != nil { // left over from an earlier attempt of this edit
			p.facts.flats.drop(w.flat.lv.ID)
		}
		w.flat.lv = lv
		p.facts.flats.put(lv.ID, time.Time{})
		return t.put(lv)
	}, act: func(ctx context.Context, v *view) error {
		w.made = v.vg
		d := v.cowDevice(w.flat.lv)
		table, err := v.linearTable(w.flat.lv)
		if err != nil {
			return err
		}
		if _, err = p.single(ctx, v, d, table, false); err == nil {
			w.file, err = os.OpenFile(p.dm.Node(d.name), os.O_WRONLY|unix.O_DIRECT, 0)
		}
		return err
	}})
}

// keptOrNew returns the logical volume for f: the reserved one with its extents, or a new one.
func (v *view) keptOrNew(f *flat) *lvm2.LV {
	lv := newFlat(f)
	if kept := v.keptFor(f.reads); kept != nil {
		tags := lv.Tags
		lv = kept.lv.Clone()
		lv.Tags = tags
	}
	return lv
}

// enlargeFlat gives lv, a flat store of o's history, more extents.
func (p *Pool) enlargeFlat(t *edit, o *volume, lv *lvm2.LV, more lvm2.Extents) error {
	kind, err := t.kindOf(o)
	if err != nil {
		return err
	}
	// Leave room for live stores, or snapshots are lost.
	spare := p.reserve(t.view) / 2
	if slices.ContainsFunc(o.flats, func(f *flat) bool { return f.lv.ID == lv.ID && t.forkNeeds(o, f) }) {
		spare = 0 // an existing fork can be read only through this store
	}
	if free := t.freeOn(kind).size(); free < more+spare {
		return fmt.Errorf("%w: %d more extents are needed for as long as it is read, but volume group %s has %d free, of which %d are kept for growing the stores of snapshots; delete volumes or newer snapshots, or extend the volume group",
			ErrNoSpace, more, t.vg.Name, free, spare)
	}
	ranges, err := t.allocateMore(lv.Segments, kind, more, highEnd)
	if err != nil {
		return err
	}
	lv.Segments = appendExtents(lv.Segments, ranges...)
	return nil
}

// keptFor returns the flat store with reserved extents for a layer; nil if there is none.
func (v *view) keptFor(layer lvm2.ID) *flat {
	for _, f := range v.flats[layer] {
		if f.used == 0 && f.odd == nil && linear(f.lv) {
			return f
		}
	}
	return nil
}

// flatNeed returns how many extents, beyond the reserved ones, a fork of layer l in o's
// history needs for a flat store. It returns 0 if the kernel can read l without one, or if
// there is one already.
func (p *Pool) flatNeed(v *view, o *volume, l *layer) lvm2.Extents {
	if l == nil || v.layers[l.lv.ID] == nil || v.depth(o, l) <= p.deepest {
		return 0
	}
	has := lvm2.Extents(0)
	if kept := v.keptFor(l.lv.ID); kept != nil {
		if p.flatWriting(kept) {
			return 0
		}
		has = kept.lv.Size()
	}
	var layers []cow.Layer
	for _, x := range o.path(l) {
		if x.snap != nil {
			break
		}
		used := x.used
		if !x.trimmed {
			used = sectors(v, x.lv.Size())
		}
		layers = append(layers, cow.Layer{Chunk: x.chunk.Bytes(), Length: x.length, Used: used})
	}
	if len(layers) == 0 {
		return 0
	}
	need := v.extents(cow.NewFlat(cow.Smallest(layers), cow.MostMerged(layers)).Metadata())
	return need - min(need, has)
}

// keepForFlat reserves extents for a flat store without which a fork of a layer cannot be
// read, in addition to extents reserved before. They stay reserved until all forks of the
// layer are hydrated.
func (p *Pool) keepForFlat(t *edit, layer lvm2.ID) error {
	l := t.layers[layer]
	if l == nil {
		return nil // it is being cut
	}
	o := t.volumes[l.of]
	n := p.flatNeed(t.view, o, l)
	if n == 0 {
		return nil
	}
	kind, err := t.kindOf(o)
	if err != nil {
		return err
	}
	path := o.path(l)
	lv := t.keptOrNew(&flat{of: l.of, reads: layer, over: path[len(path)-1].lv.ID, chunk: l.chunk})
	ranges, err := t.allocateMore(lv.Segments, kind, n, highEnd)
	if err != nil {
		return err
	}
	lv.Segments = appendExtents(lv.Segments, ranges...)
	return t.put(lv)
}

// forkNeeds reports whether a fork that is not hydrated reads through f, a flat store of
// o's history, or will. The fork counts even without devices, as after a reboot.
func (v *view) forkNeeds(o *volume, f *flat) bool {
	l := v.layers[f.reads]
	if l == nil || l.of != o.lv.ID || !v.forkedFrom(l) {
		return false
	}
	if best, _ := v.flatOf(o, l); best != nil {
		return best == f
	}
	return v.keptFor(f.reads) == f
}

// forkedFrom reports whether a fork of l exists that is not hydrated.
func (v *view) forkedFrom(l *layer) bool {
	for _, o := range v.volumes {
		if o.copyOf == l.lv.ID {
			return true
		}
	}
	return false
}

// awaited reports whether f is being written, or is written and waits for its first reader.
func (p *Pool) awaited(v *view, f *flat) bool {
	written, asked := p.facts.flats.get(f.lv.ID)
	wait := flatSoon
	if v.pinned[f.reads] {
		wait = flatWait
	}
	return asked && (written.IsZero() || time.Since(written) < wait)
}

// notAwaited records that f no longer waits for its first reader. It does nothing while f is
// being written.
func (p *Pool) notAwaited(f *flat) {
	if written, asked := p.facts.flats.get(f.lv.ID); asked && !written.IsZero() {
		p.facts.flats.drop(f.lv.ID)
	}
}

// dropFlats turns unused flat stores of a volume, and of the volumes that it reads through,
// into trash. The caller holds the volume's key.
func (p *Pool) dropFlats(ctx context.Context, lv string) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(v.family(lv), func(lv string) bool { o := v.volumeByLV(lv); return o != nil && len(o.flats) > 0 }) {
		return nil
	}
	defer p.wiper.wake()
	return p.do(ctx, &change{what: "delete idle flat stores of volume " + lv, edit: func(t *edit) error {
		for _, lv := range t.family(lv) {
			if o := t.volumeByLV(lv); o != nil {
				if err := p.discardUnread(t, o); err != nil {
					return err
				}
			}
		}
		return nil
	}, act: func(ctx context.Context, v *view) error {
		p.facts.tables.keep(func(id lvm2.ID) bool { return v.vg.LVByID(id) != nil })
		return p.sweep(ctx, v)
	}})
}

// idleFlat returns a flat store of o that nobody reads, awaits or needs; nil if there is none.
// has are the UUIDs of the existing devices.
func (p *Pool) idleFlat(v *view, o *volume, has map[string]bool) *flat {
	if v.unclear != nil {
		return nil
	}
	for _, f := range o.flats {
		l := v.layers[f.reads]
		read := l != nil && has[v.snapDevice(l.lv).uuid] && has[v.cowDevice(f.lv).uuid]
		if !read && !p.awaited(v, f) && !v.forkNeeds(o, f) {
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
	if o := v.volumeByLV(lv); o != nil {
		if f := p.idleFlat(v, o, has); f != nil {
			return fmt.Errorf("flat store %s/%s, which nobody reads any more: %w: its device is open, or lvm2 has changed it", v.vg.Name, f.lv.Name, ErrInUse)
		}
	}
	return nil
}

// giveUpUnread deletes, in the background, written flat stores without a reader, because a
// live store needs their extents. A caller that awaits such a store has to ask again. Flat
// stores that forks need stay.
func (p *Pool) giveUpUnread() {
	v := p.current.Load()
	for _, o := range v.volumes {
		unread := false
		for _, f := range o.flats {
			if written, asked := p.facts.flats.get(f.lv.ID); asked && !written.IsZero() && !v.forkNeeds(o, f) {
				p.facts.flats.drop(f.lv.ID)
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
	for _, o := range t.volumes {
		if err := p.discardUnread(t, o); err != nil {
			return err
		}
	}
	return nil
}

// discardUnread turns unused flat stores of o into trash: stores without a snapshot device
// above them that nobody awaits and no fork needs.
func (p *Pool) discardUnread(t *edit, o *volume) error {
	if t.unclear != nil {
		return nil
	}
	for _, f := range o.flats {
		if p.awaited(t.view, f) || t.forkNeeds(o, f) {
			continue
		}
		info, err := p.find(t.cowDevice(f.lv))
		if err != nil {
			return err
		}
		if now := t.vg.LVByID(f.lv.ID); now != nil && linear(now) && (info == nil || info.OpenCount == 0) {
			if err := t.discard(now); err != nil {
				return err
			}
		}
	}
	return nil
}
