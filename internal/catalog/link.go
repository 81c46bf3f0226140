package catalog

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/internal/index"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// decoded is a logical volume with its decoded form: *Volume, *Layer, *ForkStore, *Flat,
// trashed, foreign or error. The forms are as the tags say; a view has linked copies.
type decoded struct {
	lv   *lvm2.LV
	form any
}

type (
	trashed struct{}
	foreign struct {
		static bool // its tag allows a static volume to name it
	}
)

// NewView decodes vg. If vg is the group of prev after an edit, NewView decodes and links only
// what changed. prev may be nil.
func NewView(vg *lvm2.VG, prev *View) *View {
	if v := prev.after(vg); v != nil {
		return v
	}
	v := &View{VG: vg, edition: vg.Edition(), doubtful: map[lvm2.ID]error{}}
	for _, lv := range vg.LVs {
		var d decoded
		if prev != nil {
			d = prev.decoded.Get(lv.ID)
		}
		if d.lv != lv {
			d = decoded{lv, decode(lv)}
		}
		v.learn(d) // also if the id is given twice
	}
	var all []lvm2.ID
	for _, lv := range vg.LVs {
		if _, is := v.form(lv).(*Volume); is {
			all = append(all, lv.ID)
		}
	}
	for id := range v.of.All() {
		if _, is := v.decoded.Get(id).form.(*Volume); !is {
			all = append(all, id)
		}
	}
	v.linkAll(all)
	v.Free = NewRangeSet(vg.Free()...)
	v.Clean = readClean(vg).Intersect(v.Free)
	v.guessed = v.guessed || !v.disjoint()
	return v
}

// form returns the decoded form of lv; nil if lv is not in the view, which has perhaps another
// version of it.
func (v *View) form(lv *lvm2.LV) any {
	if lv == nil {
		return nil
	}
	if d := v.decoded.Get(lv.ID); d.lv == lv {
		return d.form
	}
	return nil
}

// volume returns the volume to which a logical volume belongs by its tags; "" if there is none.
func (d decoded) volume() lvm2.ID {
	switch f := d.form.(type) {
	case *Volume:
		return d.lv.ID
	case *Layer:
		return f.Of
	case *ForkStore:
		return f.of
	case *Flat:
		return f.Of
	}
	return ""
}

// learn adds a logical volume to the view. Its volume must be linked afterwards.
func (v *View) learn(d decoded) {
	lv := d.lv
	v.decoded.Set(lv.ID, d)
	v.guessed = v.guessed || slices.ContainsFunc(lv.Segments, guess)
	if s := SnapshotSegment(lv); s != nil {
		add(&v.links, s.Origin, lv)
		add(&v.links, s.COWStore, lv)
	}
	if _, is := d.form.(*Volume); !is && d.volume() != "" {
		add(&v.of, d.volume(), lv.ID)
	}
	switch f := d.form.(type) {
	case *Volume:
		v.misread(lv, f.Odd)
		if from := f.From(); from != "" {
			add(&v.Pinned, from, lv.ID)
		}
		for _, known := range []string{f.sourceHere(), f.Former} {
			if known != "" {
				v.sources.Set(known, v.sources.Get(known)+1)
			}
		}
	case *Layer:
		v.misread(lv, f.odd)
	case *ForkStore:
		v.misread(lv, f.odd)
	case *Flat:
		v.misread(lv, f.odd)
		add(&v.Flats, f.Reads, f)
	case trashed:
		v.Trash = append(slices.Clip(v.Trash), lv)
	case error:
		v.misread(lv, f)
	}
}

// forget is the inverse of learn.
func (v *View) forget(d decoded) {
	lv := d.lv
	v.decoded.Delete(lv.ID)
	if s := SnapshotSegment(lv); s != nil {
		drop(&v.links, s.Origin, lv)
		drop(&v.links, s.COWStore, lv)
	}
	if _, is := d.form.(*Volume); !is && d.volume() != "" {
		drop(&v.of, d.volume(), lv.ID)
	}
	switch f := d.form.(type) {
	case *Volume:
		if from := f.From(); from != "" {
			drop(&v.Pinned, from, lv.ID)
		}
		for _, known := range []string{f.sourceHere(), f.Former} {
			if known != "" {
				if v.sources.Set(known, v.sources.Get(known)-1); v.sources.Get(known) == 0 {
					v.sources.Delete(known)
				}
			}
		}
	case *Flat:
		drop(&v.Flats, f.Reads, f)
	case trashed:
		v.Trash = slices.DeleteFunc(slices.Clone(v.Trash), func(x *lvm2.LV) bool { return x == lv })
	}
}

// misread records a logical volume with a tag that is not understood. Every id in its other
// tags still counts, so that nothing the logical volume may need is deleted.
func (v *View) misread(lv *lvm2.LV, why error) {
	if why == nil {
		return
	}
	why = fmt.Errorf("logical volume %s/%s: %w", v.VG.Name, lv.Name, why)
	v.Strange = append(v.Strange, why.Error())
	if v.Unclear == nil {
		v.Unclear = why
	}
	for _, id := range idsIn(lv.Tags, tagCopy, tagReads) {
		add(&v.Pinned, id, lv.ID)
	}
	for _, id := range idsIn(lv.Tags, tagOf) {
		v.doubtful[id] = why
	}
}

// linkAll links volumes to what belongs to them. Some of them may be gone.
func (v *View) linkAll(ids []lvm2.ID) {
	for _, id := range ids {
		v.unlink(id)
	}
	for _, id := range ids {
		if o, is := v.decoded.Get(id).form.(*Volume); is {
			v.link(id, *o)
		} else {
			v.orphans(id)
		}
	}
	for _, id := range ids {
		o := v.Volumes.Get(id)
		if o == nil || o.Reads == "" || o.Transient {
			continue
		}
		if l := v.Layers.Get(o.Reads); l != nil { // a read-only reader has only the layer's content
			o.Formatted, o.Unknown = !l.Blank, l.unknown
		}
	}
}

// unlink takes a volume and its history out of the view.
func (v *View) unlink(id lvm2.ID) {
	o := v.Volumes.Get(id)
	if o == nil {
		return
	}
	v.Volumes.Delete(id)
	if v.Named.Get(o.Name) == o {
		v.Named.Delete(o.Name)
	}
	if o.Fork != nil {
		v.forks.Delete(o.Fork.LV.ID)
	}
	for _, l := range o.Layers {
		v.Layers.Delete(l.LV.ID)
		v.Flattened.Delete(l.LV.ID)
		v.untrimmed.Delete(l.LV.ID)
		if v.Snapshots.Get(l.Name) == l {
			v.Snapshots.Delete(l.Name)
		}
	}
}

// link adds a volume with its history. o is a copy of its decoded form, because a view owns its
// links.
func (v *View) link(id lvm2.ID, form Volume) {
	o := &form
	v.Volumes.Set(id, o)
	if !o.Deleted {
		v.twice = v.twice || v.Named.Has(o.Name)
		v.Named.Set(o.Name, o)
	}
	for _, hidden := range v.links.Get(o.LV.Name) {
		s := SnapshotSegment(hidden)
		if s.Origin != o.LV.Name {
			continue
		}
		o.Merging = o.Merging || s.Merging
		if _, ours := v.form(v.VG.LV(s.COWStore)).(*Layer); !ours {
			o.foreignCow = true
		}
	}
	for _, part := range v.of.Get(id) {
		switch f := v.decoded.Get(part).form.(type) {
		case *Layer:
			v.linkLayer(o, *f)
		case *ForkStore:
			v.linkFork(o, f)
		case *Flat:
			o.Flats = append(o.Flats, f)
		}
	}
	slices.SortFunc(o.Layers, func(a, b *Layer) int { return int(int64(a.Order) - int64(b.Order)) })
	v.twice = v.twice || o.unordered()
	if o.headKept {
		o.Unknown = v.zeroedHead(o, o.Unknown)
	}
	if why := v.doubtful[id]; o.Odd == nil && why != nil {
		o.Odd = why
	}
	if o.Odd == nil { // otherwise its history is not known
		o.findLoss()
	}
	v.markFlattened(o)
	for _, l := range o.Layers {
		if l.Untrimmed() {
			v.untrimmed.Set(l.LV.ID, l)
		}
	}
}

// linkLayer adds a layer of o. form is a copy of its decoded form.
func (v *View) linkLayer(o *Volume, form Layer) {
	l := &form
	for _, hidden := range v.links.Get(l.LV.Name) {
		if SnapshotSegment(hidden).COWStore == l.LV.Name {
			l.Snap = hidden
		}
	}
	l.Blank = l.Blank || !o.Formatted // older releases did not record it on layers
	if l.headKept && !l.Blank {
		l.unknown = v.zeroedHead(o, l.unknown)
	}
	o.Layers = append(o.Layers, l)
	v.Layers.Set(l.LV.ID, l)
	if l.Named {
		v.twice = v.twice || v.Snapshots.Has(l.Name)
		v.Snapshots.Set(l.Name, l)
	}
}

// linkFork adds the store of a fork or of a reader.
func (v *View) linkFork(o *Volume, s *ForkStore) {
	switch {
	case o.Forked():
		v.twice = v.twice || o.Fork != nil
		o.Fork = s
		v.forks.Set(s.LV.ID, s)
	case o.Reading() && !o.Transient:
		o.Fork = s
	default:
		v.strangeFork(s)
	}
}

func (v *View) strangeFork(s *ForkStore) {
	v.Strange = append(v.Strange, fmt.Sprintf("store %s/%s of a fork: its volume %s is not a fork; %s", v.VG.Name, s.LV.Name, s.of, v.giveUp(s.LV, s.of)))
}

// orphans records what belongs to a volume that is not in the group.
func (v *View) orphans(id lvm2.ID) {
	for _, part := range v.of.Get(id) {
		switch f := v.decoded.Get(part).form.(type) {
		case *Layer:
			v.Strange = append(v.Strange, fmt.Sprintf("layer %s/%s: its volume %s is not in the group; %s", v.VG.Name, f.LV.Name, f.Of, v.giveUp(f.LV, f.Of)))
		case *ForkStore:
			v.strangeFork(f)
		case *Flat:
			v.Strange = append(v.Strange, fmt.Sprintf("flat store %s/%s: its volume %s is not in the group; %s", v.VG.Name, f.LV.Name, f.Of, v.giveUp(f.LV, f.Of)))
		}
	}
}

// add appends a value to the list of a key. Copies of the map keep their list.
func add[K cmp.Ordered, V any](m *index.Map[K, []V], key K, v V) {
	m.Set(key, append(slices.Clip(m.Get(key)), v))
}

// drop removes a value from the list of a key.
func drop[K cmp.Ordered, V comparable](m *index.Map[K, []V], key K, v V) {
	left := slices.DeleteFunc(slices.Clone(m.Get(key)), func(x V) bool { return x == v })
	if m.Set(key, left); len(left) == 0 {
		m.Delete(key)
	}
}
