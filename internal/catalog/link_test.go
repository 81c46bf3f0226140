package catalog

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/index"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestNewView_afterEdit: after any edits the view that is linked from what changed is equal to
// the view that is linked again.
func TestNewView_afterEdit(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 9))
	shared, strange := 0, 0
	v := rollbackGroup(t)
	for round := range 2000 {
		own := *v
		own.VG = v.VG.Clone()
		e := &Edit{View: &own}
		var what string
		for range 1 + random.IntN(3) {
			what += randomEdit(e, random, round) + "; "
		}
		next := v.after(e.VG)
		anew := NewView(e.VG, nil)
		switch {
		case next == nil && !anew.strange() && !v.strange():
			t.Fatalf("round %d: %s: everything is linked again, although nothing is strange", round, what)
		case next == nil:
			strange++
			if random.IntN(4) > 0 { // usually a strange group is dropped
				continue
			}
			next = NewView(e.VG, v)
			if !v.strange() && len(next.VG.LVs) > 30 {
				continue
			}
		default:
			shared++
		}
		next.Clean = anew.Clean // the engine sets it
		if a, b := content(next), content(anew); !reflect.DeepEqual(a, b) {
			for k := range b {
				if !reflect.DeepEqual(a[k], b[k]) {
					t.Errorf("%s: %s\nwant %s", k, describe(a[k]), describe(b[k]))
				}
			}
			t.Fatalf("round %d: after %s the views differ", round, what)
		}
		if v = next; len(v.VG.LVs) > 40 || v.strange() && random.IntN(3) == 0 {
			v = rollbackGroup(t)
		}
	}
	if shared < 800 || strange < 100 {
		t.Errorf("%d views were linked from what changed, and %d had something strange", shared, strange)
	}
}

// randomEdit makes an edit that is perhaps senseless, and says which.
func randomEdit(e *Edit, random *rand.Rand, round int) string {
	now := NewView(e.VG, nil)
	name := fmt.Sprintf("x%d", random.IntN(1000))
	var o *Volume
	for _, x := range now.Volumes.All() {
		if o == nil || random.IntN(now.Volumes.Len()) == 0 {
			o = x
		}
	}
	var l *Layer
	for _, x := range now.Layers.All() {
		if l == nil || random.IntN(now.Layers.Len()) == 0 {
			l = x
		}
	}
	room := AppendExtents(nil, lvm2.Range{Start: lvm2.Extents(20 + random.IntN(370)), Count: lvm2.Extents(1 + random.IntN(3))})
	with := func(lv *lvm2.LV) *lvm2.LV { lv.Segments = room; return lv }
	put := func(lv *lvm2.LV) { _ = e.Put(lv) }
	t := &Edit{View: now} // with links, for edits that need them
	switch k := random.IntN(20); {
	case k == 0 || o == nil || l == nil:
		put(with(NewVolumeLV(name, VolumeSpec{Name: name, Mode: Block, Source: Source{Kind: FromNothing}}, 1<<22)))
		return "create " + name
	case k == 1:
		_ = t.DeleteVolume(o)
		return "delete " + o.LV.Name
	case k == 2 && o.Odd == nil:
		if live := o.Live(); live != nil {
			_ = t.Freeze(live, true)
		}
		lv := with(now.NewLayer(name, o, 32))
		put(lv)
		_ = e.Join(o, lv, 1<<22, 32)
		_ = e.Record(CutLayer{Layer: lv.ID}, name)
		return "cut " + o.LV.Name
	case k == 3:
		_ = t.Unname(l)
		return "unname " + l.LV.Name
	case k == 4:
		lv := with(NewVolumeLV(name, VolumeSpec{Name: name, Mode: Block, Source: Source{FromSnapshot, l.LV.Name}}, 1<<22))
		ReadThrough(lv, l.LV.ID)
		put(lv)
		put(with(NewForkStore(name+"-w", lv, 32)))
		return "fork " + l.LV.Name
	case k == 5:
		lv := NewVolumeLV(name, VolumeSpec{Name: name, Mode: Block, ReadOnly: true, Source: Source{FromSnapshot, l.LV.Name}}, 1<<22)
		lv.Segments = []lvm2.Segment{{Count: 1, Type: lvm2.TypeError}}
		Show(lv, l.LV.ID, 0)
		put(lv)
		return "read " + l.LV.Name
	case k == 6:
		_ = t.SetFormatted(o)
		return "format " + o.LV.Name
	case k == 7:
		c := o.LV.Clone()
		c.Name = name
		put(c)
		return "rename " + o.LV.Name
	case k == 8:
		f := with(NewFlat(&Flat{Of: l.Of, Reads: l.LV.ID, Over: l.LV.ID, Chunk: 32}))
		put(f)
		return "flat store for " + l.LV.Name
	case k == 9 && len(now.Trash) > 0:
		_ = t.Shorten(now.Trash[0].ID, now.Trash[0].Size())
		return "wipe"
	case k == 10 && o.Fork != nil && o.Forked():
		c := o.LV.Clone()
		c.Tags = DropTags(c.Tags, tagCopy, tagHydrated)
		put(c)
		_ = t.Discard(o.Fork.LV)
		return "hydrated " + o.LV.Name
	case k == 11 && o.Odd == nil && len(o.Layers) > 0:
		_ = t.Lose(o, o.Layers[random.IntN(len(o.Layers))])
		return "lose of " + o.LV.Name
	case k == 12:
		c := o.LV.Clone()
		SetUnknown(c, RangeSet{{Start: lvm2.Extents(random.IntN(4)), Count: 1}})
		put(c)
		return "unknown of " + o.LV.Name
	case k == 13:
		lv := e.VG.LVs[random.IntN(len(e.VG.LVs))]
		_ = e.Remove(lv.ID)
		return "remove " + lv.Name
	case k == 14 && round%3 == 0:
		c := e.VG.LVs[random.IntN(len(e.VG.LVs))].Clone()
		c.Tags = append(c.Tags, []string{Tag("later"), Tag(tagOf, string(o.LV.ID)), Tag(tagName, "n"), Tag(tagLost), Tag(tagRole, roleLayer), Tag(tagCopy, string(l.LV.ID))}[random.IntN(6)])
		put(c)
		return "a tag for " + c.Name
	case k == 15: // two volumes change their names and CSI names
		for _, x := range now.Volumes.All() {
			if x == o {
				continue
			}
			a, b := o.LV.Clone(), x.LV.Clone()
			a.Name, b.Name = name, o.LV.Name
			put(a)
			put(b)
			a = a.Clone()
			a.Name = x.LV.Name
			put(a)
			break
		}
		return "swap " + o.LV.Name
	case k == 16:
		put(with(&lvm2.LV{Name: name, ID: lvm2.NewID(), Status: []string{lvm2.StatusRead, lvm2.StatusVisible}}))
		return "theirs"
	case k == 17 && o.Forked():
		put(with(NewForkStore(name+"-w", o.LV, 32)))
		return "another store for " + o.LV.Name
	case k == 18 && len(o.Layers) > 1:
		c := o.Layers[0].LV.Clone()
		c.Tags = append(DropTags(c.Tags, tagOrder), Tag(tagOrder, fmt.Sprint(o.Layers[1].Order)))
		put(c)
		return "the same place for two layers of " + o.LV.Name
	}
	return "nothing"
}

// content returns what a view has, in a form that does not depend on the order of edits.
func content(v *View) map[string]any {
	out := map[string]any{
		"layers": maps.Collect(v.Layers.All()), "flattened": maps.Collect(v.Flattened.All()), "untrimmed": maps.Collect(v.untrimmed.All()),
		"snapshots": maps.Collect(v.Snapshots.All()), "forks": maps.Collect(v.forks.All()), "sources": maps.Collect(v.sources.All()),
		"decoded": maps.Collect(v.decoded.All()), "strange": len(v.Strange), "unclear": v.Unclear == nil,
		"free": v.Free, "clean": v.Clean, "pinned": sets(v.Pinned), "of": sets(v.of),
	}
	volumes := map[lvm2.ID]Volume{}
	for id, o := range v.Volumes.All() {
		c := *o
		c.Flats = slices.Clone(c.Flats)
		slices.SortFunc(c.Flats, func(a, b *Flat) int { return compareIDs(a.LV.ID, b.LV.ID) })
		volumes[id] = c
	}
	out["volumes"] = volumes
	named := map[string]bool{}
	for name, o := range v.Named.All() {
		named[name+string(o.LV.ID)] = v.Volumes.Get(o.LV.ID) == o
	}
	out["named"] = named
	trash := map[lvm2.ID]*lvm2.LV{}
	for _, lv := range v.Trash {
		trash[lv.ID] = lv
	}
	out["trash"] = trash
	flats := map[lvm2.ID]map[lvm2.ID]*Flat{}
	for id, all := range v.Flats.All() {
		flats[id] = map[lvm2.ID]*Flat{}
		for _, f := range all {
			flats[id][f.LV.ID] = f
		}
	}
	out["flats"] = flats
	return out
}

func compareIDs(a, b lvm2.ID) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func sets(m index.Map[lvm2.ID, []lvm2.ID]) map[lvm2.ID]map[lvm2.ID]bool {
	out := map[lvm2.ID]map[lvm2.ID]bool{}
	for id, all := range m.All() {
		out[id] = map[lvm2.ID]bool{}
		for _, x := range all {
			out[id][x] = true
		}
	}
	return out
}

func describe(x any) string {
	s := fmt.Sprintf("%+v", x)
	return s[:min(len(s), 600)]
}
