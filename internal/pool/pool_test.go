package pool

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestSettled_wakes: new trash, and trash that may have become wipeable, wakes the
// wiper. Trash that it failed to wipe before does not. Callers that wait for room hear
// of all freed extents, even if as many were taken.
func TestSettled_wakes(t *testing.T) {
	state := func(free catalog.RangeSet, trash ...lvm2.ID) *view {
		v := &view{View: &catalog.View{VG: &lvm2.VG{}, Free: free}}
		for _, id := range trash {
			v.Trash = append(v.Trash, &lvm2.LV{ID: id})
		}
		return v
	}
	some, more, other := catalog.RangeSet{{Start: 0, Count: 2}}, catalog.RangeSet{{Start: 0, Count: 3}}, catalog.RangeSet{{Start: 5, Count: 1}}
	for _, c := range []struct {
		name          string
		before, after *view
		swept         bool
		woken, freed  bool
	}{
		{"nothing", state(some), state(some), false, false, false},
		{"opening without trash", nil, state(some), false, false, true},
		{"opening with trash", nil, state(some, "a"), false, true, true},
		{"new trash", state(some), state(some, "a"), false, true, false},
		{"trash instead of other", state(some, "a"), state(some, "b"), false, true, true},
		{"wiped, and all extents were taken", state(some, "a"), state(some), false, false, true},
		{"the same trash", state(some, "a"), state(some, "a"), false, false, false},
		{"the trash has no device any more", state(some, "a"), state(some, "a"), true, true, false},
		{"wiped", state(some, "a"), state(more), false, false, true},
		{"wiped, and more extents were taken", state(some, "a"), state(other), false, false, true},
		{"taken", state(more), state(some), false, false, false},
	} {
		p := &Pool{group: group{facts: newFacts()}}
		w := newWiper(p)
		next := w.freed()
		if c.swept {
			p.facts.noteSwept()
		}
		w.settled(c.before, c.after)
		if got := len(w.signal) > 0; got != c.woken {
			t.Errorf("%s: the wiper is woken: %v, want %v", c.name, got, c.woken)
		}
		freed := false
		select {
		case <-next:
			freed = true
		default:
		}
		if freed != c.freed {
			t.Errorf("%s: callers hear of freed extents: %v, want %v", c.name, freed, c.freed)
		}
	}
}

// TestSettled_lateAct: the end of a late act keeps the window of a fork that was made
// after the act's change, and drops the window of a volume that is gone.
func TestSettled_lateAct(t *testing.T) {
	old := &view{View: &catalog.View{VG: &lvm2.VG{}}}
	now := &view{View: &catalog.View{VG: &lvm2.VG{}}}
	now.Volumes.Set("fork", &catalog.Volume{})
	p := &Pool{group: group{facts: newFacts()}}
	p.current.Store(now)
	h := newHydrator(p)
	h.setWindow("fork", &window{})
	h.setWindow("gone", &window{})
	h.settled(old, old)
	if h.window("fork") == nil || h.window("gone") != nil {
		t.Errorf("the fork's window is %v, and the window of the volume that is gone is %v", h.window("fork"), h.window("gone"))
	}
}
