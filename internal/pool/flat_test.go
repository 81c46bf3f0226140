package pool

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestSteepest_besideFold: the oldest layer that is read by too many devices gets the
// next flat store. The two layers of a running fold get none, and do not keep other
// layers from getting one.
func TestSteepest_besideFold(t *testing.T) {
	g := newGroup(t)
	g.volume("vol", 8)
	for i := range catalog.FlatLevels + 4 {
		g.cut("vol", fmt.Sprintf("s%d", i), 1)
	}
	o, has := g.VolumeByLV("vol"), map[string]bool{}
	for _, l := range o.Layers {
		has[g.view().snapDevice(l.LV).uuid] = true
	}
	folded := map[lvm2.ID]bool{}
	for i, want := range []string{"s0", "s1", "s2", "s3"} {
		l := g.view().steepest(o, has, func(id lvm2.ID) bool { return folded[id] })
		if l == nil || l.LV.Name != want {
			t.Fatalf("with %d layers in a fold, the steepest is %v, want %s", i, l, want)
		}
		folded[l.LV.ID] = true
	}
	if l := g.view().steepest(o, has, func(id lvm2.ID) bool { return folded[id] }); l != nil {
		t.Errorf("%s gets a flat store, although it is read by few devices", l.LV.Name)
	}
}

// TestKeepForFlat_untilHydrated: a fork of a snapshot that lies too deep reserves
// extents for a flat store, other forks do not, and extents and store stay until the
// fork is hydrated.
func TestKeepForFlat_untilHydrated(t *testing.T) {
	g := newGroup(t)
	g.volume("vol", 8)
	for i := range 9 {
		g.cut("vol", fmt.Sprintf("s%d", i), 1)
	}
	p := &Pool{group: group{facts: newFacts()}, mapper: mapper{deepest: 7}}
	layerOf := func(lv string) *catalog.Layer { return g.Layers.Get(g.VG.LV(lv).ID) }
	for lv, want := range map[string]lvm2.Extents{"s0": 1, "s1": 1, "s2": 0, "s8": 0} {
		if n := p.flatNeed(g.view(), g.VolumeByLV("vol"), layerOf(lv)); n != want {
			t.Errorf("a fork of %s needs %d extents, want %d", lv, n, want)
		}
	}
	for _, lv := range []string{"s0", "s2"} {
		g.check(p.keepForFlat(g.edit, layerOf(lv).LV.ID))
	}
	o := g.VolumeByLV("vol")
	if len(o.Flats) != 1 || o.Flats[0].Reads != layerOf("s0").LV.ID || p.flatNeed(g.view(), o, layerOf("s0")) != 0 {
		t.Fatalf("the flat stores are %+v, want one for s0", o.Flats)
	}
	if g.ForkNeeds(o, o.Flats[0]) {
		t.Error("a flat store is needed for a fork, but there is no fork")
	}
	devices := map[string]bool{g.view().snapDevice(g.VG.LV("s0")).uuid: true}
	if p.idleFlat(g.view(), o, devices) != o.Flats[0] {
		t.Error("a flat store without a device does not count as idle")
	}
	if devices[g.view().cowDevice(o.Flats[0].LV).uuid] = true; p.idleFlat(g.view(), o, devices) != nil {
		t.Error("a flat store with a device counts as idle")
	}
	g.volume("fork", 8, catalog.Tag("copy", string(layerOf("s0").LV.ID)))
	if o = g.VolumeByLV("vol"); !g.ForkNeeds(o, o.Flats[0]) {
		t.Error("the flat store is not kept for the fork")
	}
	p.facts.flats.put(o.Flats[0].LV.ID, time.Time{})
	if !p.awaited(g.view(), o.Flats[0]) {
		t.Error("a flat store that is being written is not awaited")
	}
	p.notAwaited(o.Flats[0])
	if !p.awaited(g.view(), o.Flats[0]) {
		t.Error("notAwaited abandoned a flat store that is being written")
	}
	p.facts.flats.put(o.Flats[0].LV.ID, time.Now().Add(-flatWait))
	if f := p.idleFlat(g.view(), o, nil); f != nil {
		t.Errorf("%s counts as idle, but a fork needs it", f.LV.Name)
	}
	if p.awaited(g.view(), o.Flats[0]) {
		t.Error("a flat store is still awaited after flatWait")
	}
}

// TestKeepForFlat_deeperSecondFork: a second fork of a snapshot that now lies deeper
// reserves the missing extents. A fork's store may grow into the reserve. Until the
// store is written, it does not count as a flat store.
func TestKeepForFlat_deeperSecondFork(t *testing.T) {
	g := newGroup(t)
	g.volume("vol", 300)
	g.volume("rest", 2500)
	cut := func(from, to int) {
		for i := from; i < to; i++ {
			name := fmt.Sprintf("s%d", i)
			g.cut("vol", name, 40)
			c := g.VG.LV(name).Clone()
			c.Tags = catalog.SetTag(c.Tags, "chunk", "8")
			g.check(g.Put(c))
		}
	}
	cut(0, 6)
	p := &Pool{group: group{facts: newFacts()}, mapper: mapper{deepest: 3}, setting: setting{config: Config{LayerReserve: 100}}}
	id := g.VG.LV("s0").ID
	vol := func() *catalog.Volume { return g.VolumeByLV("vol") }
	need := func() lvm2.Extents { return p.flatNeed(g.view(), vol(), g.Layers.Get(id)) }
	if need() != 1 {
		t.Fatalf("the first fork needs %d extents", need())
	}
	g.check(p.keepForFlat(g.edit, id))
	kept := vol().Flats[0]
	if err := p.enlargeFlat(g.edit, vol(), kept.LV.Clone(), 1); !errors.Is(err, ErrNoSpace) {
		t.Errorf("a flat store without a fork grows into the reserve: %v", err)
	}
	g.volume("one", 8, catalog.Tag("copy", string(id)))
	one := g.VolumeByLV("one")
	if err := p.enlargeFlat(g.edit, vol(), kept.LV.Clone(), 1); err != nil {
		t.Errorf("a fork's flat store does not grow: %v", err)
	}
	if !g.ReadsUnasked(one, g.Layers.Get(id)) {
		t.Error("a reserved flat store counts as written")
	}
	cut(6, 10)
	if need() != 1 {
		t.Errorf("the second fork needs %d more extents, want 1", need())
	}
	p.facts.flats.put(kept.LV.ID, time.Time{})
	if need() != 0 {
		t.Error("a flat store grows while it is being written")
	}
	p.facts.flats.drop(kept.LV.ID)
	g.check(p.keepForFlat(g.edit, id))
	if all := vol().Flats; len(all) != 1 || all[0].LV.ID != kept.LV.ID || all[0].LV.Size() != 2 || all[0].Over != g.VG.LV("s9").ID || need() != 0 {
		t.Errorf("the flat store is %+v, and needs %d more extents", all[0], need())
	}
	for i := range 9 { // now the store is written
		c := g.VG.LV(fmt.Sprintf("s%d", i)).Clone()
		c.Tags = catalog.SetTag(c.Tags, "used", "16")
		g.check(g.Put(c))
	}
	c := vol().Flats[0].LV.Clone()
	c.Tags = catalog.SetTag(c.Tags, "used", "256")
	g.check(g.Put(c))
	if one = g.VolumeByLV("one"); g.ReadsUnasked(one, g.Layers.Get(id)) || need() != 0 {
		t.Error("the written flat store does not count as a flat store")
	}
}

// TestGiveUpUnread_notWhileWrittenOrNeeded: when a live store finds no room, unread
// flat stores are deleted, but not one that is being written or that a fork needs.
func TestGiveUpUnread_notWhileWrittenOrNeeded(t *testing.T) {
	g := newGroup(t)
	w := paperWork(g)
	p, id := w.pool, w.flat.LV.ID
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.cancel() // there is no kernel, so no store is deleted
	asked := func(written time.Time) bool {
		p.current.Store(g.view())
		p.facts.flats.put(id, written)
		p.giveUpUnread()
		p.work.Wait() // it reads the view, which is changed next
		return p.facts.flats.has(id)
	}
	if !asked(time.Time{}) {
		t.Error("a flat store that is being written was abandoned")
	}
	if asked(time.Now()) {
		t.Error("a flat store that nobody reads was not abandoned")
	}
	g.volume("fork", 8, catalog.Tag("copy", string(w.flat.Reads)))
	if !asked(time.Now()) {
		t.Error("a fork's flat store was abandoned")
	}
}

// TestCaretaker_logsRepeatedFailureOnce: a failure that repeats is logged once, and
// again if its reason changes.
func TestCaretaker_logsRepeatedFailureOnce(t *testing.T) {
	c := newCaretaker(nil)
	for i, s := range []struct {
		err  error
		news bool
	}{{nil, false}, {ErrNoSpace, true}, {ErrNoSpace, false}, {ErrLost, true}, {ErrLost, false}, {nil, false}, {ErrLost, true}} {
		if news := c.news("steep", s.err); news != s.news {
			t.Errorf("failure %d, %v: news is %v, want %v", i, s.err, news, s.news)
		}
	}
}
