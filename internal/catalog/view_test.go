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

// A fork whose tags an older or newer version has made may not lose what it
// reads through.
func TestNewView_strangeForkPinsItsLayer(t *testing.T) {
	v := rollbackGroup(t)
	layer := v.Snapshots["old"]
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
			t.Fatalf("%s: it is not strange: %v", key, now.Strange)
		}
		if !now.Pinned[layer.LV.ID] {
			t.Errorf("%s: its layer may be thrown away", key)
		}
	}
}

// With any tag that is not understood nothing is thrown away in the whole group,
// and it is again once the tag is gone.
func TestNewView_nothingGoesWhileUnclear(t *testing.T) {
	layer := rollbackGroup(t).Snapshots["old"].LV.ID
	for name, odd := range map[string]struct{ lv, tag string }{
		"a volume's name twice":           {"base", Tag(tagName, "again")},
		"another volume's name twice":     {"bare", Tag(tagName, "again")},
		"a layer's order twice":           {"old", Tag(tagOrder, "7")},
		"a key of a later version":        {"new", Tag("later", "1")},
		"a value without sense":           {"bare", Tag(tagHydrated, "from here to there")},
		"an escape without sense":         {"bare", tagPrefix + "source=snapshot=zz"},
		"two layers to read":              {"bare", Tag(tagCopy, string(layer))},
		"a second volume of a layer":      {"old", Tag(tagOf, string(lvm2.NewID()))},
		"a role that is not known":        {"trash", Tag(tagRole, "later")},
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
			unnamed := v.Snapshots["old"].LV.Clone() // nothing needs it
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
				t.Fatalf("it is understood: %v", now.Strange)
			}
			e := &Edit{View: now}
			if err := e.Tidy(); err != nil || e.Changed {
				t.Errorf("something was thrown away: %v", err)
			}
			if o := now.VolumeByLV("base"); len(now.Needed(o)) != len(o.Layers) || now.Disposable(o) || len(now.FoldPairs()) > 0 {
				t.Errorf("layers may be thrown away or folded")
			}
			if id := v.VG.LV("old").ID; odd.tag == Tag(tagCopy, string(layer)) && !now.Pinned[id] {
				t.Errorf("the second layer that it may read through is not kept")
			}
			if o := now.VolumeByLV("bare"); o != nil && o.Odd == nil {
				if err := e.DeleteVolume(o); err != nil || e.VG.LV("bare") == nil {
					t.Errorf("a volume's blocks were thrown away: %v", err)
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
				t.Errorf("once it is understood what nothing needs stays: %v", err)
			}
		})
	}
}

// A tag that the parser is not told of stops all reclaiming.
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

// What an older build recorded of a block volume says nothing of a file system's
// first blocks, also once the volume's mode has changed.
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
	if l := now.Snapshots["old"]; !l.headKept || len(l.unknown.Intersect(RangeSet{{Count: 1}})) == 0 {
		t.Errorf("of the snapshot %v is unknown, not its first extent", l.unknown)
	}
}
