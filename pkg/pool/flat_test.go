package pool

import (
	"fmt"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestSteepest: the oldest layer that is read by too many devices is the next to get a
// store of its own. The two layers of a fold that is under way get none, and keep no
// other layer from it.
func TestSteepest(t *testing.T) {
	g := newGroup(t)
	g.volume("vol", 8)
	for i := range flatLevels + 4 {
		g.cut("vol", fmt.Sprintf("s%d", i), 1)
	}
	o, has := g.volumeByLV("vol"), map[string]bool{}
	for _, l := range o.layers {
		has[g.snapDevice(l.lv).uuid] = true
	}
	folded := map[lvm2.ID]bool{}
	for i, want := range []string{"s0", "s1", "s2", "s3"} {
		l := g.steepest(o, has, func(id lvm2.ID) bool { return folded[id] })
		if l == nil || l.lv.Name != want {
			t.Fatalf("after %d that are folded it is %v, want %s", i, l, want)
		}
		folded[l.lv.ID] = true
	}
	if l := g.steepest(o, has, func(id lvm2.ID) bool { return folded[id] }); l != nil {
		t.Errorf("%s is read by few devices", l.lv.Name)
	}
}

// TestKeptForFlat: a fork of a snapshot that lies too deep has extents for a flat store,
// and no other fork. They, and the store, stay until the fork is hydrated.
func TestKeptForFlat(t *testing.T) {
	g := newGroup(t)
	g.volume("vol", 8)
	for i := range 9 {
		g.cut("vol", fmt.Sprintf("s%d", i), 1)
	}
	p := &Pool{group: group{facts: newFacts()}, mapper: mapper{deepest: 7}}
	layerOf := func(lv string) *layer { return g.layers[g.vg.LV(lv).ID] }
	for lv, want := range map[string]lvm2.Extents{"s0": 1, "s1": 1, "s2": 0, "s8": 0} {
		if n := p.flatNeed(g.view, g.volumeByLV("vol"), layerOf(lv)); n != want {
			t.Errorf("a fork of %s needs %d extents, want %d", lv, n, want)
		}
	}
	for _, lv := range []string{"s0", "s2"} {
		g.check(p.keepForFlat(g.edit, layerOf(lv).lv.ID))
	}
	o := g.volumeByLV("vol")
	if len(o.flats) != 1 || o.flats[0].reads != layerOf("s0").lv.ID || p.flatNeed(g.view, o, layerOf("s0")) != 0 {
		t.Fatalf("there are %+v", o.flats)
	}
	if g.forkNeeds(o, o.flats[0]) {
		t.Error("there is no fork")
	}
	g.volume("fork", 8, tag(tagCopy, string(layerOf("s0").lv.ID)))
	if o = g.volumeByLV("vol"); !g.forkNeeds(o, o.flats[0]) {
		t.Error("it is not kept for the fork")
	}
	p.facts.flats.put(o.flats[0].lv.ID, time.Time{})
	if !p.awaited(g.view, o.flats[0]) {
		t.Error("it is being written")
	}
	p.notAwaited(o.flats[0])
	if !p.awaited(g.view, o.flats[0]) {
		t.Error("it is being written, and was given up")
	}
	p.facts.flats.put(o.flats[0].lv.ID, time.Now().Add(-flatWait))
	if p.awaited(g.view, o.flats[0]) {
		t.Error("who asked for it has had his time")
	}
}

// TestNews: what fails again and again is logged once, and when the reason changes.
func TestNews(t *testing.T) {
	c := newCaretaker(nil)
	for i, s := range []struct {
		err  error
		news bool
	}{{nil, false}, {ErrNoSpace, true}, {ErrNoSpace, false}, {ErrLost, true}, {ErrLost, false}, {nil, false}, {ErrLost, true}} {
		if news := c.news("steep", s.err); news != s.news {
			t.Errorf("%d: %v is news: %v", i, s.err, news)
		}
	}
}
