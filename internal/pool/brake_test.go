package pool

import (
	"testing"
)

// TestBrake_resumeFailed makes a convergence resume a device that the brake failed
// to resume.
func TestBrake_resumeFailed(t *testing.T) {
	paper := newGroup(t)
	paper.volume("vol", 8)
	paper.cut("vol", "s0", 2)
	p := newPool(t.Context(), Config{}, Options{})
	p.current.Store(paper.view())
	o, l := paper.VolumeByLV("vol"), paper.Snapshots.Get("s0")
	g := p.newGrowth(l.Store(o), 0)
	g.braked.Store(true)
	p.facts.growing.put(l.LV.ID, g)
	c := p.convergence(paper.view(), "vol", demand{})
	if len(c.braked()) != 1 {
		t.Fatal("its writers are not held")
	}
	if p.unbraked(g); len(c.braked()) != 0 || !p.facts.unsettled.has(o.LV.ID) {
		t.Errorf("still held: %v, to be looked after: %v", c.braked(), p.facts.unsettled.has(o.LV.ID))
	}
	p.current.Store(newGroup(t).view())
	p.unbraked(g) // the store is gone in the meantime
}
