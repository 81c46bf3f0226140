package pool

import (
	"context"
	"errors"
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
	devices := map[string]bool{g.snapDevice(g.vg.LV("s0")).uuid: true}
	if p.idleFlat(g.view, o, devices) != o.flats[0] {
		t.Error("nobody reads by it")
	}
	if devices[g.cowDevice(o.flats[0].lv).uuid] = true; p.idleFlat(g.view, o, devices) != nil {
		t.Error("it is read by")
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
	if f := p.idleFlat(g.view, o, nil); f != nil {
		t.Errorf("a fork needs %s", f.lv.Name)
	}
	if p.awaited(g.view, o.flats[0]) {
		t.Error("who asked for it has had his time")
	}
}

// TestKeptGrows: a second fork of a snapshot that has got deeper meanwhile sets aside what
// the first one's store lacks, and that store grows by it also where little is free. Until
// the store is written the forks read at any time.
func TestKeptGrows(t *testing.T) {
	g := newGroup(t)
	g.volume("vol", 300)
	g.volume("rest", 2500)
	cut := func(from, to int) {
		for i := from; i < to; i++ {
			name := fmt.Sprintf("s%d", i)
			g.cut("vol", name, 40)
			c := g.vg.LV(name).Clone()
			c.Tags = setTag(c.Tags, tagChunk, "8")
			g.check(g.put(c))
		}
	}
	cut(0, 6)
	p := &Pool{group: group{facts: newFacts()}, mapper: mapper{deepest: 3}, setting: setting{config: Config{LayerReserve: 100}}}
	id := g.vg.LV("s0").ID
	vol := func() *volume { return g.volumeByLV("vol") }
	need := func() lvm2.Extents { return p.flatNeed(g.view, vol(), g.layers[id]) }
	if need() != 1 {
		t.Fatalf("the first fork needs %d extents", need())
	}
	g.check(p.keepForFlat(g.edit, id))
	kept := vol().flats[0]
	if err := p.enlargeFlat(g.edit, vol(), kept.lv.Clone(), 1); !errors.Is(err, ErrNoSpace) {
		t.Errorf("without a fork it grows into what is kept for live stores: %v", err)
	}
	g.volume("one", 8, tag(tagCopy, string(id)))
	one := g.volumeByLV("one")
	if err := p.enlargeFlat(g.edit, vol(), kept.lv.Clone(), 1); err != nil {
		t.Errorf("the fork's does not grow: %v", err)
	}
	if !g.readsUnasked(one, g.layers[id]) {
		t.Error("room for a store that is not written counts as a store")
	}
	cut(6, 10)
	if need() != 1 {
		t.Errorf("the second fork needs %d extents more", need())
	}
	p.facts.flats.put(kept.lv.ID, time.Time{})
	if need() != 0 {
		t.Error("what is being written grows")
	}
	p.facts.flats.drop(kept.lv.ID)
	g.check(p.keepForFlat(g.edit, id))
	if all := vol().flats; len(all) != 1 || all[0].lv.ID != kept.lv.ID || all[0].lv.Size() != 2 || all[0].over != g.vg.LV("s9").ID || need() != 0 {
		t.Errorf("there are %+v, %d extents are needed", all[0], need())
	}
	for i := range 9 { // and it is written
		c := g.vg.LV(fmt.Sprintf("s%d", i)).Clone()
		c.Tags = setTag(c.Tags, tagUsed, "16")
		g.check(g.put(c))
	}
	c := vol().flats[0].lv.Clone()
	c.Tags = setTag(c.Tags, tagUsed, "256")
	g.check(g.put(c))
	if one = g.volumeByLV("one"); g.readsUnasked(one, g.layers[id]) || need() != 0 {
		t.Error("it is written, and does not count as a store")
	}
}

// TestGiveUpUnread: where a live store finds no room those flat stores are given up that
// nobody has read by yet, but not one that is being written, or that a fork needs.
func TestGiveUpUnread(t *testing.T) {
	g := newGroup(t)
	w := paperWork(g)
	p, id := w.pool, w.flat.lv.ID
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.cancel() // no store is given back: there is no kernel
	asked := func(written time.Time) bool {
		p.current.Store(g.view)
		p.facts.flats.put(id, written)
		p.giveUpUnread()
		p.work.Wait() // it looks at the view, which is changed next
		return p.facts.flats.has(id)
	}
	if !asked(time.Time{}) {
		t.Error("one that is being written was given up")
	}
	if asked(time.Now()) {
		t.Error("one that nobody reads by stays")
	}
	g.volume("fork", 8, tag(tagCopy, string(w.flat.reads)))
	if !asked(time.Now()) {
		t.Error("a fork's was given up")
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
