package catalog

import (
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// FlatLevels is the largest number of stacked snapshot devices, within one volume, by which
// an old snapshot is read. Above this number a flat store is worth its extents and commits.
const FlatLevels = 4

// flatPrefix begins the names of the logical volumes of flat stores.
const flatPrefix = "dmsnap-flat-"

// Flat is a flat store: a logical volume of role flat.
type Flat struct {
	LV    *lvm2.LV
	Of    lvm2.ID      // the volume
	Reads lvm2.ID      // the layer that is read through the store
	Over  lvm2.ID      // the layer whose device lies below the snapshot: the first layer that is not in the store
	Chunk size.Sectors // chunk size of the store
	Used  size.Sectors // length of header and areas; 0 if not written yet
	odd   error        // set if a tag is not understood
}

// decodeFlat reads the tags of lv into a *Flat or an error.
func decodeFlat(lv *lvm2.LV, odd error, r *tagReader) any {
	f := &Flat{LV: lv, odd: odd, Of: r.id(tagOf, true), Reads: r.id(tagReads, true), Over: r.id(tagOver, true), Chunk: size.Sectors(r.number(tagChunk))}
	if r.has(tagUsed) {
		f.Used = size.Sectors(r.number(tagUsed))
	}
	if f.Chunk == 0 {
		r.fail(tagChunk)
	}
	if r.err != nil {
		return r.err
	}
	return f
}

// Layout returns the layout of the store.
func (f *Flat) Layout() cow.Flat {
	return cow.Flat{Chunk: f.Chunk.Bytes(), Areas: uint64(f.Used/f.Chunk) - 1}
}

// markFlattened records the layers of o that are part of a flat store.
func (v *View) markFlattened(o *Volume) {
	for _, f := range o.Flats {
		l := v.Layers.Get(f.Reads)
		if l == nil || l.Of != f.Of {
			continue // it is deleted once its device is removed
		}
		for _, x := range o.Path(l) {
			if x.LV.ID == f.Over {
				break
			}
			v.Flattened.Set(x.LV.ID, true)
		}
	}
}

// FlatOf returns the flat store by which layer l of o is read, and the layer below the flat
// store; nil if l is read by its own store.
func (v *View) FlatOf(o *Volume, l *Layer) (best *Flat, over *Layer) {
	list := v.Flats.Get(l.LV.ID)
	if len(list) == 0 {
		return nil, nil
	}
	path, at := o.Path(l), 0
	for _, f := range list {
		i := slices.IndexFunc(path, func(x *Layer) bool { return x.LV.ID == f.Over })
		if i > at && f.whole(path[:i]) {
			best, over, at = f, path[i], i
		}
	}
	return best, over
}

// whole reports whether the store is written, and its layers can still be read through it.
func (f *Flat) whole(layers []*Layer) bool {
	return f.Used >= 2*f.Chunk && f.odd == nil && Flattable(layers)
}

// Flattable reports whether a flat store can be made of layers: the used size of each store
// is known and does not change.
func Flattable(layers []*Layer) bool {
	return !slices.ContainsFunc(layers, func(l *Layer) bool { return !l.Trimmed || l.Snap != nil || l.Lost || !Linear(l.LV) })
}

// Route returns the layers of o by whose devices l is read, l first: the layers of its path
// without the layers that flat stores skip.
func (v *View) Route(o *Volume, l *Layer) []*Layer {
	out := []*Layer{l}
	for len(out) <= len(o.Layers) { // more means a circle, made by changed tags
		if l = v.Below(o, l); l == nil {
			break
		}
		out = append(out, l)
	}
	return out
}

// Below returns the layer of o whose device lies below the device of l; nil for the last one.
func (v *View) Below(o *Volume, l *Layer) *Layer {
	if _, over := v.FlatOf(o, l); over != nil {
		return over
	}
	return o.next(l)
}

// FlatParts returns the logical volumes that a flat store is made of.
func (v *View) FlatParts(o *Volume, f *Flat) []*lvm2.LV {
	parts := []*lvm2.LV{f.LV}
	for _, l := range o.Path(v.Layers.Get(f.Reads)) {
		if l.LV.ID == f.Over {
			break
		}
		parts = append(parts, l.LV)
	}
	return parts
}

// NewFlat returns the logical volume of a flat store, without extents.
func NewFlat(f *Flat) *lvm2.LV {
	lv := NewLV("", roleFlat, Tag(tagOf, string(f.Of)), Tag(tagReads, string(f.Reads)), Tag(tagOver, string(f.Over)),
		Tag(tagChunk, number(f.Chunk)))
	lv.Name = flatPrefix + string(lv.ID)
	lv.Status = []string{lvm2.StatusRead, lvm2.StatusVisible}
	HandOff(lv)
	return lv
}

// KeptOrNew returns the logical volume for f: the reserved one with its extents, or a new one.
func (v *View) KeptOrNew(f *Flat) *lvm2.LV {
	lv := NewFlat(f)
	if kept := v.KeptFor(f.Reads); kept != nil {
		tags := lv.Tags
		lv = kept.LV.Clone()
		lv.Tags = tags
	}
	return lv
}

// KeptFor returns the flat store with reserved extents for a layer; nil if there is none.
func (v *View) KeptFor(layer lvm2.ID) *Flat {
	for _, f := range v.Flats.Get(layer) {
		if f.Used == 0 && f.odd == nil && Linear(f.LV) {
			return f
		}
	}
	return nil
}

// ForkNeeds reports whether a fork that is not hydrated reads through f, a flat store of
// o's history, or will. The fork counts even without devices, as after a reboot.
func (v *View) ForkNeeds(o *Volume, f *Flat) bool {
	l := v.Layers.Get(f.Reads)
	if l == nil || l.Of != o.LV.ID || !v.forkedFrom(l) {
		return false
	}
	if best, _ := v.FlatOf(o, l); best != nil {
		return best == f
	}
	return v.KeptFor(f.Reads) == f
}

// forkedFrom reports whether a fork of l exists that is not hydrated.
func (v *View) forkedFrom(l *Layer) bool {
	for _, o := range v.Volumes.All() {
		if o.CopyOf == l.LV.ID {
			return true
		}
	}
	return false
}
