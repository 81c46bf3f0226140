package pool

import (
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// An old snapshot that many newer layers lie over is read by a store of its own,
// a flat one, instead of a device for each layer:
//
//	pool-snapK     snapshot  <pool-snapN> <pool-flat-cow> P <chunk>, read-only
//	pool-flat-cow  linear    header and areas: the flat store's own extents
//	               error     between two areas, where nothing is read
//	               linear    the stores of layers K to N-1, one after another
//
// Its areas list for each chunk the oldest of these layers that has it (cow.Merge).
// snapN was the live layer when the store was made. Each later cut puts one more
// device below, until there are more than flatLevels: then another store is made,
// which takes the place of this one. The store's extents go when nobody reads the
// snapshot any more.
//
// What is committed when:
//
//	made     the logical volume with its extents, without tagUsed
//	written  tagUsed, once header and areas are on the disk
//	gone     trash, once its device is gone
//
// The layers of a flat store are frozen and trimmed, and are not folded as long as
// it is there, so that its table can be told from the metadata at any time.

// flatLevels is how many snapshot devices lie over each other, of those that an
// older snapshot of one volume is read by, before a flat store is worth its extents and commits.
const flatLevels = 4

// flatPrefix begins the names of the logical volumes.
const flatPrefix = "dmsnap-flat-"

// flat is a logical volume of role flat.
type flat struct {
	lv    *lvm2.LV
	of    lvm2.ID      // the volume
	reads lvm2.ID      // the layer that is read by it
	over  lvm2.ID      // the layer whose device the snapshot lies on: the first that is not in the store
	chunk size.Sectors // of the store
	used  size.Sectors // of its extents, by header and areas; 0: they are not written yet
	odd   error        // a tag of it that is not understood
}

// decodeFlat reads the tags of lv into a *flat or an error.
func decodeFlat(lv *lvm2.LV, odd error, r *tagReader) any {
	f := &flat{lv: lv, odd: odd, of: r.id(tagOf, true), reads: r.id(tagReads, true), over: r.id(tagOver, true), chunk: size.Sectors(r.number(tagChunk))}
	if r.has(tagUsed) {
		f.used = size.Sectors(r.number(tagUsed))
	}
	if f.chunk == 0 {
		r.fail(tagChunk)
	}
	if r.err != nil {
		return r.err
	}
	return f
}

// layout is where the parts of the store are.
func (f *flat) layout() cow.Flat {
	return cow.Flat{Chunk: f.chunk.Bytes(), Areas: uint64(f.used/f.chunk) - 1}
}

// linkFlats links the flat stores to what they are made of.
func (v *view) linkFlats(all []*flat) {
	for _, f := range all {
		v.flats[f.reads] = append(v.flats[f.reads], f)
		o, l := v.volumes[f.of], v.layers[f.reads]
		if o == nil {
			v.strange = append(v.strange, fmt.Sprintf("store %s/%s to read a snapshot by: its volume %s is not in the group; %s", v.vg.Name, f.lv.Name, f.of, v.giveUp(f.lv, f.of)))
			continue
		}
		o.flats = append(o.flats, f)
		if l == nil || l.of != f.of {
			continue // it goes with its device
		}
		for _, x := range o.path(l) {
			if x.lv.ID == f.over {
				break
			}
			v.flattened[x.lv.ID] = true
		}
	}
}

// flatOf returns the store by which layer l of o is read, and the layer that lies
// below that; nil if it is read by its own store.
func (v *view) flatOf(o *volume, l *layer) (best *flat, over *layer) {
	list := v.flats[l.lv.ID]
	if len(list) == 0 {
		return nil, nil
	}
	path, at := o.path(l), 0
	for _, f := range list {
		i := slices.IndexFunc(path, func(x *layer) bool { return x.lv.ID == f.over })
		if i > at && f.whole(path[:i]) {
			best, over, at = f, path[i], i
		}
	}
	return best, over
}

// whole reports whether the store is written and these, its layers, are as they were then.
func (f *flat) whole(layers []*layer) bool {
	return f.used >= 2*f.chunk && f.odd == nil && flattable(layers)
}

// flattable reports whether a flat store can be made of layers: how much of each store
// is in use is known, and does not change.
func flattable(layers []*layer) bool {
	return !slices.ContainsFunc(layers, func(l *layer) bool { return !l.trimmed || l.snap != nil || l.lost || !linear(l.lv) })
}

// route returns the layers of o whose devices l is read by, its own first: those of
// its path without the ones in between that a flat store has taken in.
func (v *view) route(o *volume, l *layer) []*layer {
	out := []*layer{l}
	for len(out) <= len(o.layers) { // else its tags were changed
		if l = v.below(o, l); l == nil {
			break
		}
		out = append(out, l)
	}
	return out
}

// below returns the layer of o whose device l's lies on, nil for the last one.
func (v *view) below(o *volume, l *layer) *layer {
	if _, over := v.flatOf(o, l); over != nil {
		return over
	}
	return o.next(l)
}

// flatTable is the table of a flat store's device.
func (v *view) flatTable(o *volume, f *flat) (dm.Table, error) {
	own, err := v.linearTable(f.lv)
	if err != nil {
		return nil, err
	}
	var t dm.Table
	put := func(part dm.Table) {
		for _, s := range part {
			s.Start = t.Length()
			t = append(t, s)
		}
	}
	for _, piece := range f.layout().Pieces() {
		t = stretched(t, piece.At)
		put(cutTable(own, piece.From, piece.From+piece.Length))
	}
	for _, l := range o.path(v.layers[f.reads]) {
		if l.lv.ID == f.over {
			break
		}
		store, err := v.linearTable(l.lv)
		if err != nil {
			return nil, err
		}
		put(cutTable(store, 0, l.used))
	}
	return t, nil
}
