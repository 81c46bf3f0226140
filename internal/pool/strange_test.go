package pool

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
func TestStrangeForkPinsItsLayer(t *testing.T) {
	v := rollbackGroup(t)
	layer := v.snapshots["old"]
	for _, key := range []string{tagCopy, tagReads} {
		own := *v
		own.vg = v.vg.Clone()
		e := &edit{view: &own}
		c := v.volumeByLV("bare").lv.Clone()
		c.Tags = append(c.Tags, tag(key, string(layer.lv.ID)), tag(tagHydrated, "from here to there"))
		if err := e.put(c); err != nil {
			t.Fatal(err)
		}
		now := newView(e.vg, v)
		if len(now.strange) != 1 || now.volumeByLV("bare") != nil {
			t.Fatalf("%s: it is not strange: %v", key, now.strange)
		}
		if !now.pinned[layer.lv.ID] {
			t.Errorf("%s: its layer may be thrown away", key)
		}
	}
}

// With any tag that is not understood nothing is thrown away in the whole group,
// and it is again once the tag is gone.
func TestNothingGoesWhileATagIsNotUnderstood(t *testing.T) {
	layer := rollbackGroup(t).snapshots["old"].lv.ID
	for name, odd := range map[string]struct{ lv, tag string }{
		"a volume's name twice":           {"base", tag(tagName, "again")},
		"another volume's name twice":     {"bare", tag(tagName, "again")},
		"a layer's order twice":           {"old", tag(tagOrder, "7")},
		"a key of a later version":        {"new", tag("later", "1")},
		"a value without sense":           {"bare", tag(tagHydrated, "from here to there")},
		"an escape without sense":         {"bare", tagPrefix + "source=snapshot=zz"},
		"two layers to read":              {"bare", tag(tagCopy, string(layer))},
		"a second volume of a layer":      {"old", tag(tagOf, string(lvm2.NewID()))},
		"a role that is not known":        {"trash", tag(tagRole, "later")},
		"a key of a later version, trash": {"trash", tag("later")},
	} {
		t.Run(name, func(t *testing.T) {
			v := rollbackGroup(t)
			start := &edit{view: v}
			trash := newLV("", roleTrash)
			trash.Name, trash.Segments = "trash", appendExtents(nil, lvm2.Range{Start: 300, Count: 2})
			bare := v.volumeByLV("bare").lv.Clone()
			if odd.tag == tag(tagCopy, string(layer)) {
				bare.Tags = append(bare.Tags, tag(tagCopy, string(lvm2.NewID())))
			}
			unnamed := v.snapshots["old"].lv.Clone() // nothing needs it
			unnamed.Tags = dropTags(unnamed.Tags, tagName)
			for _, lv := range []*lvm2.LV{trash, bare, unnamed} {
				if err := start.put(lv); err != nil {
					t.Fatal(err)
				}
			}
			c := v.vg.LV(odd.lv).Clone()
			c.Tags = append(c.Tags, odd.tag)
			if err := start.put(c); err != nil {
				t.Fatal(err)
			}
			now := newView(v.vg, nil)
			if now.unclear == nil || len(now.strange) == 0 {
				t.Fatalf("it is understood: %v", now.strange)
			}
			e := &edit{view: now}
			if err := e.tidy(); err != nil || e.changed {
				t.Errorf("something was thrown away: %v", err)
			}
			if o := now.volumeByLV("base"); len(now.needed(o)) != len(o.layers) || now.disposable(o) || len(now.foldPairs()) > 0 {
				t.Errorf("layers may be thrown away or folded")
			}
			if id := v.vg.LV("old").ID; odd.tag == tag(tagCopy, string(layer)) && !now.pinned[id] {
				t.Errorf("the second layer that it may read through is not kept")
			}
			if o := now.volumeByLV("bare"); o != nil && o.odd == nil {
				if err := e.deleteVolume(o); err != nil || e.vg.LV("bare") == nil {
					t.Errorf("a volume's blocks were thrown away: %v", err)
				}
			}
			c = now.vg.LV(odd.lv).Clone()
			c.Tags = slices.DeleteFunc(c.Tags, func(s string) bool { return s == odd.tag })
			if odd.tag == tag(tagCopy, string(layer)) {
				c.Tags = dropTags(c.Tags, tagCopy)
			}
			if err := e.put(c); err != nil {
				t.Fatal(err)
			}
			e.view = newView(e.vg, nil)
			if err := e.tidy(); err != nil || e.vg.LV("old") != nil {
				t.Errorf("once it is understood what nothing needs stays: %v", err)
			}
		})
	}
}

// A tag that the parser is not told of stops all reclaiming.
func TestEveryTagIsKnown(t *testing.T) {
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
func TestHeadOfWhatWasABlockDevice(t *testing.T) {
	v := rollbackGroup(t)
	own := *v
	own.vg = v.vg.Clone()
	e := &edit{view: &own}
	for lv, tags := range map[string][]string{
		"base": {tag(tagMode, string(Filesystem)), tag(tagFS, "ext4"), tag(tagRaw)},
		"old":  {tagPrefix + tagUnknown + "=0.0+8"},
	} {
		c := v.vg.LV(lv).Clone()
		c.Tags = append(dropTags(c.Tags, tagMode), tags...)
		if err := e.put(c); err != nil {
			t.Fatal(err)
		}
	}
	now := newView(e.vg, v)
	if len(now.strange) > 0 {
		t.Fatal(now.strange)
	}
	if l := now.snapshots["old"]; !l.headKept || len(l.unknown.intersect(rangeSet{{Count: 1}})) == 0 {
		t.Errorf("of the snapshot %v is unknown, not its first extent", l.unknown)
	}
}
