package catalog

import (
	"maps"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// after returns the view of vg, which is the group of v after an edit. It returns nil if that is
// not certain, or if something is strange before or after the edit: then everything must be
// linked again.
func (v *View) after(vg *lvm2.VG) *View {
	if v == nil || v.strange() || vg.Seqno != v.VG.Seqno || !slices.Equal(vg.PVs, v.VG.PVs) {
		return nil
	}
	ids, known := vg.ChangedSince(v.edition)
	if !known {
		return nil
	}
	n := &View{
		VG: vg, edition: vg.Edition(), doubtful: map[lvm2.ID]error{}, guessed: v.guessed, Trash: v.Trash, Free: v.Free,
		Volumes: v.Volumes.Copy(), Layers: v.Layers.Copy(), Flats: v.Flats.Copy(), Flattened: v.Flattened.Copy(), Named: v.Named.Copy(),
		Snapshots: v.Snapshots.Copy(), Pinned: v.Pinned.Copy(), decoded: v.decoded.Copy(), forks: v.forks.Copy(), of: v.of.Copy(),
		links: v.links.Copy(), sources: v.sources.Copy(), untrimmed: v.untrimmed.Copy(),
	}
	c := difference{view: n, volumes: map[lvm2.ID]bool{}, names: map[string]bool{}}
	for _, id := range ids {
		c.forget(v.decoded.Get(id))
	}
	for _, id := range ids {
		if lv := vg.LVByID(id); lv != nil {
			c.learn(lv)
		}
	}
	n.linkAll(c.affected(v))
	if n.strange() {
		return nil
	}
	if n.guessed {
		n.Free = NewRangeSet(vg.Free()...)
	} else {
		n.Free = v.Free.Union(NewRangeSet(c.freed...)).Subtract(NewRangeSet(c.used...))
	}
	n.Clean = v.Clean.Intersect(n.Free)
	return n
}

// strange reports whether logical volumes do not fit together, so that a change of one may
// matter to any other.
func (v *View) strange() bool { return len(v.Strange) > 0 || v.Unclear != nil || v.twice }

// difference is the logical volumes that an edit changed, and what they concern.
type difference struct {
	view        *View
	volumes     map[lvm2.ID]bool
	names       map[string]bool // of logical volumes
	freed, used []lvm2.Range
}

func (c *difference) forget(d decoded) {
	if d.lv != nil {
		c.concern(d)
		c.freed = append(c.freed, c.view.extentsOf(d.lv)...)
		c.view.forget(d)
	}
}

func (c *difference) learn(lv *lvm2.LV) {
	d := decoded{lv, decode(lv)}
	c.concern(d)
	c.used = append(c.used, c.view.extentsOf(lv)...)
	c.view.learn(d)
}

// concern notes the volume and the names that matter to the links of a logical volume.
func (c *difference) concern(d decoded) {
	c.names[d.lv.Name] = true
	if s := SnapshotSegment(d.lv); s != nil {
		c.names[s.Origin], c.names[s.COWStore] = true, true
	}
	if id := d.volume(); id != "" {
		c.volumes[id] = true
	}
}

// affected returns the volumes that must be linked again: those of changed logical volumes,
// those whose snapshots' links name a changed logical volume, and their readers. before is the
// view before the changes.
func (c *difference) affected(before *View) []lvm2.ID {
	named := func(name string) {
		if lv := c.view.VG.LV(name); lv != nil {
			if id := c.view.decoded.Get(lv.ID).volume(); id != "" {
				c.volumes[id] = true
			}
		}
	}
	for name := range c.names {
		named(name)
		for _, hidden := range c.view.links.Get(name) {
			s := SnapshotSegment(hidden)
			named(s.Origin)
			named(s.COWStore)
		}
	}
	for _, id := range slices.Collect(maps.Keys(c.volumes)) {
		layers := c.view.of.Get(id)
		if o := before.Volumes.Get(id); o != nil {
			for _, l := range o.Layers {
				layers = append(slices.Clip(layers), l.LV.ID)
			}
		}
		for _, layer := range layers {
			for _, reader := range c.view.Pinned.Get(layer) {
				c.volumes[reader] = true
			}
		}
	}
	return slices.Collect(maps.Keys(c.volumes))
}

// extentsOf returns the extents that become free when lv is removed. It sets guessed if that is
// not certain.
func (v *View) extentsOf(lv *lvm2.LV) (out []lvm2.Range) {
	for _, s := range lv.Segments {
		v.guessed = v.guessed || guess(s)
		for _, stripe := range s.Stripes {
			if stripe.PV < 0 || !v.VG.PVs[stripe.PV].Allocatable() {
				continue
			}
			end := min(stripe.Start+s.Count/lvm2.Extents(len(s.Stripes)), v.VG.PVs[stripe.PV].PECount)
			if end > stripe.Start {
				out = append(out, lvm2.Range{PV: stripe.PV, Start: stripe.Start, Count: end - stripe.Start})
			}
		}
	}
	return out
}

// guess reports whether the extents of a segment are not known for certain.
func guess(s lvm2.Segment) bool {
	return s.Type != lvm2.TypeStriped && s.Type != lvm2.TypeSnapshot && s.Type != lvm2.TypeError
}

// disjoint reports whether each extent is free or belongs to one logical volume.
func (v *View) disjoint() bool {
	n := v.Free.Size()
	for _, pv := range v.VG.PVs {
		if pv.Allocatable() {
			n -= pv.PECount
		}
	}
	for _, lv := range v.VG.LVs {
		for _, r := range v.extentsOf(lv) {
			n += r.Count
		}
	}
	return n == 0
}
