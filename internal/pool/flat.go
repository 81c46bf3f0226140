package pool

import (
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The driver reads an old snapshot with many newer layers by a flat store, instead of by
// one device for each layer:
//
//	pool-snapK     snapshot  <pool-snapN> <pool-flat-cow> P <chunk>, read-only
//	pool-flat-cow  linear    header and areas: the flat store's own extents
//	               error     between two areas, where nobody reads
//	               linear    the stores of layers K to N-1, one after another
//
// Its areas list for each chunk the oldest of these layers that has the chunk (cow.Merge).
// snapN was the live layer when the store was made. Each later cut adds a device below.
// Once there are more than flatLevels devices, the driver makes another store, which
// replaces this one. The driver deletes the store when nobody reads the snapshot any more.
//
// The states of a flat store in the metadata:
//
//	made     the logical volume with its extents, without tagUsed
//	written  tagUsed, once header and areas are on the disk
//	gone     trash, once its device is gone
//
// The layers of a flat store are frozen and trimmed, and are not folded while the store
// exists, so that its table can be computed from the metadata at any time.

// flatLevels is the largest number of stacked snapshot devices, within one volume, by which
// an old snapshot is read. Above this number a flat store is worth its extents and commits.
const flatLevels = 4

// flatPrefix begins the names of the logical volumes.
const flatPrefix = "dmsnap-flat-"

// flat is a flat store: a logical volume of role flat.
type flat struct {
	lv    *lvm2.LV
	of    lvm2.ID      // the volume
	reads lvm2.ID      // the layer that is read through the store
	over  lvm2.ID      // the layer whose device lies below the snapshot: the first layer that is not in the store
	chunk size.Sectors // chunk size of the store
	used  size.Sectors // length of header and areas; 0 if not written yet
	odd   error        // set if a tag is not understood
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

// layout returns the layout of the store.
func (f *flat) layout() cow.Flat {
	return cow.Flat{Chunk: f.chunk.Bytes(), Areas: uint64(f.used/f.chunk) - 1}
}

// linkFlats links the flat stores to their volumes and layers.
func (v *view) linkFlats(all []*flat) {
	for _, f := range all {
		v.flats[f.reads] = append(v.flats[f.reads], f)
		o, l := v.volumes[f.of], v.layers[f.reads]
		if o == nil {
			v.strange = append(v.strange, fmt.Sprintf("flat store %s/%s: its volume %s is not in the group; %s", v.vg.Name, f.lv.Name, f.of, v.giveUp(f.lv, f.of)))
			continue
		}
		o.flats = append(o.flats, f)
		if l == nil || l.of != f.of {
			continue // it is deleted once its device is removed
		}
		for _, x := range o.path(l) {
			if x.lv.ID == f.over {
				break
			}
			v.flattened[x.lv.ID] = true
		}
	}
}

// flatOf returns the flat store by which layer l of o is read, and the layer below the flat
// store; nil if l is read by its own store.
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

// whole reports whether the store is written, and its layers can still be read through it.
func (f *flat) whole(layers []*layer) bool {
	return f.used >= 2*f.chunk && f.odd == nil && flattable(layers)
}

// flattable reports whether a flat store can be made of layers: the used size of each store
// is known and does not change.
func flattable(layers []*layer) bool {
	return !slices.ContainsFunc(layers, func(l *layer) bool { return !l.trimmed || l.snap != nil || l.lost || !linear(l.lv) })
}

// route returns the layers of o by whose devices l is read, l first: the layers of its path
// without the layers that flat stores skip.
func (v *view) route(o *volume, l *layer) []*layer {
	out := []*layer{l}
	for len(out) <= len(o.layers) { // more means a circle, made by changed tags
		if l = v.below(o, l); l == nil {
			break
		}
		out = append(out, l)
	}
	return out
}

// below returns the layer of o whose device lies below the device of l; nil for the last one.
func (v *view) below(o *volume, l *layer) *layer {
	if _, over := v.flatOf(o, l); over != nil {
		return over
	}
	return o.next(l)
}

// flatTable returns the table of a flat store's device.
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
