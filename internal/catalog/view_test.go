package catalog

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestNewView_strangeForkPinsItsLayer: a layer stays while a volume names it, even if the
// volume's tags are not understood.
func TestNewView_strangeForkPinsItsLayer(t *testing.T) {
	v := rollbackGroup(t)
	layer := v.Snapshots.Get("old")
	for _, key := range []string{tagCopy, tagReads} {
		own := *v
		own.VG = v.VG.Clone()
		e := &Edit{View: &own}
		c := v.VolumeByLV("bare").LV.Clone()
		c.Tags = append(c.Tags, Tag(key, string(layer.LV.ID)), Tag(tagHydrated, "from here to there"))
		if err := e.Put(c); err != nil {
			t.Fatal(err)
		}
		now := NewView(e.VG, v)
		if len(now.Strange) != 1 || now.VolumeByLV("bare") != nil {
			t.Fatalf("%s: the volume's tags are understood: %v", key, now.Strange)
		}
		if !now.Pinned.Has(layer.LV.ID) {
			t.Errorf("%s: the layer may be discarded", key)
		}
	}
}

// TestNewView_nothingGoesWhileUnclear: while any tag is not understood, nothing in the group is
// discarded or folded. Once the tag is gone, Tidy discards what nothing needs.
func TestNewView_nothingGoesWhileUnclear(t *testing.T) {
	layer := rollbackGroup(t).Snapshots.Get("old").LV.ID
	for name, odd := range map[string]struct{ lv, tag string }{
		"a volume's name twice":           {"base", Tag(tagName, "again")},
		"another volume's name twice":     {"bare", Tag(tagName, "again")},
		"a layer's order twice":           {"old", Tag(tagOrder, "7")},
		"a key of a later version":        {"new", Tag("later", "1")},
		"a value that makes no sense":     {"bare", Tag(tagHydrated, "from here to there")},
		"an escape that makes no sense":   {"bare", tagPrefix + "source=snapshot=zz"},
		"two layers to read through":      {"bare", Tag(tagCopy, string(layer))},
		"a second volume of a layer":      {"old", Tag(tagOf, string(lvm2.NewID()))},
		"an unknown role":                 {"trash", Tag(tagRole, "later")},
		"a key of a later version, trash": {"trash", Tag("later")},
	} {
		t.Run(name, func(t *testing.T) {
			v := rollbackGroup(t)
			start := &Edit{View: v}
			trash := NewLV("", roleTrash)
			trash.Name, trash.Segments = "trash", AppendExtents(nil, lvm2.Range{Start: 300, Count: 2})
			bare := v.VolumeByLV("bare").LV.Clone()
			if odd.tag == Tag(tagCopy, string(layer)) {
				bare.Tags = append(bare.Tags, Tag(tagCopy, string(lvm2.NewID())))
			}
			unnamed := v.Snapshots.Get("old").LV.Clone() // nothing needs it
			unnamed.Tags = DropTags(unnamed.Tags, tagName)
			for _, lv := range []*lvm2.LV{trash, bare, unnamed} {
				if err := start.Put(lv); err != nil {
					t.Fatal(err)
				}
			}
			c := v.VG.LV(odd.lv).Clone()
			c.Tags = append(c.Tags, odd.tag)
			if err := start.Put(c); err != nil {
				t.Fatal(err)
			}
			now := NewView(v.VG, nil)
			if now.Unclear == nil || len(now.Strange) == 0 {
				t.Fatalf("the tag is understood: %v", now.Strange)
			}
			e := &Edit{View: now}
			if err := e.Tidy(); err != nil || e.Changed {
				t.Errorf("Tidy discarded a logical volume, or failed: %v", err)
			}
			if o := now.VolumeByLV("base"); len(now.Needed(o)) != len(o.Layers) || now.Disposable(o) || len(now.FoldPairs()) > 0 {
				t.Error("layers may be discarded or folded")
			}
			if id := v.VG.LV("old").ID; odd.tag == Tag(tagCopy, string(layer)) && !now.Pinned.Has(id) {
				t.Error("the second layer that the volume may read through is not kept")
			}
			if o := now.VolumeByLV("bare"); o != nil && o.Odd == nil {
				if err := e.DeleteVolume(o); err != nil || e.VG.LV("bare") == nil {
					t.Errorf("a deleted volume's blocks were discarded, or its deletion failed: %v", err)
				}
			}
			c = now.VG.LV(odd.lv).Clone()
			c.Tags = slices.DeleteFunc(c.Tags, func(s string) bool { return s == odd.tag })
			if odd.tag == Tag(tagCopy, string(layer)) {
				c.Tags = DropTags(c.Tags, tagCopy)
			}
			if err := e.Put(c); err != nil {
				t.Fatal(err)
			}
			e.View = NewView(e.VG, nil)
			if err := e.Tidy(); err != nil || e.VG.LV("old") != nil {
				t.Errorf("without the tag, a layer that nothing needs stays: %v", err)
			}
		})
	}
}

// TestKnownTags_complete: knownTags has every key in tags.go. A key that is missing there would
// make every group with such a tag unclear.
func TestKnownTags_complete(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "tags.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		s, is := n.(*ast.ValueSpec)
		if !is || len(s.Values) != 1 || !strings.HasPrefix(s.Names[0].Name, "tag") || s.Names[0].Name == "tagPrefix" || s.Names[0].Name == "tagClean" {
			return true
		}
		if key, err := strconv.Unquote(s.Values[0].(*ast.BasicLit).Value); err != nil || !slices.Contains(knownTags, key) {
			t.Errorf("%s is not in knownTags", s.Names[0].Name)
		}
		return true
	})
}

// TestZeroedHead_formerBlockDevice: the first extents of a former block volume stay unknown.
// Older releases zeroed the first MiB only before they made a file system.
func TestZeroedHead_formerBlockDevice(t *testing.T) {
	v := rollbackGroup(t)
	own := *v
	own.VG = v.VG.Clone()
	e := &Edit{View: &own}
	for lv, tags := range map[string][]string{
		"base": {Tag(tagMode, string(Filesystem)), Tag(tagFS, "ext4"), Tag(tagRaw)},
		"old":  {tagPrefix + tagUnknown + "=0.0+8"},
	} {
		c := v.VG.LV(lv).Clone()
		c.Tags = append(DropTags(c.Tags, tagMode), tags...)
		if err := e.Put(c); err != nil {
			t.Fatal(err)
		}
	}
	now := NewView(e.VG, v)
	if len(now.Strange) > 0 {
		t.Fatal(now.Strange)
	}
	if l := now.Snapshots.Get("old"); !l.headKept || len(l.unknown.Intersect(RangeSet{{Count: 1}})) == 0 {
		t.Errorf("the snapshot's unknown extents are %v, without the first extent", l.unknown)
	}
}
