package pool

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestSettled_wakes wakes the wiper for new trash, and for trash that may have
// become wipeable, but not for trash that it failed to wipe before. Callers that
// wait for room hear of all freed extents, even if as many were taken.
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
		{"wiped, and all of it was taken", state(some, "a"), state(some), false, false, true},
		{"the same trash", state(some, "a"), state(some, "a"), false, false, false},
		{"its device is gone", state(some, "a"), state(some, "a"), true, true, false},
		{"wiped", state(some, "a"), state(more), false, false, true},
		{"wiped, and more was taken", state(some, "a"), state(other), false, false, true},
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
			t.Errorf("%s: woken %v", c.name, got)
		}
		freed := false
		select {
		case <-next:
			freed = true
		default:
		}
		if freed != c.freed {
			t.Errorf("%s: freed %v", c.name, freed)
		}
	}
}

// TestSettled_lateAct keeps what a fork has begun since an act's change when the
// act ends.
func TestSettled_lateAct(t *testing.T) {
	old := &view{View: &catalog.View{VG: &lvm2.VG{}}}
	now := &view{View: &catalog.View{VG: &lvm2.VG{}, Volumes: map[lvm2.ID]*catalog.Volume{"fork": {}}}}
	p := &Pool{group: group{facts: newFacts()}}
	p.current.Store(now)
	h := newHydrator(p)
	h.setWindow("fork", &window{})
	h.setWindow("gone", &window{})
	h.settled(old, old)
	if h.window("fork") == nil || h.window("gone") != nil {
		t.Errorf("the fork's window is %v, that of one that is gone is %v", h.window("fork"), h.window("gone"))
	}
}
