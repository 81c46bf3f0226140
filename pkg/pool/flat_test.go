package pool

import (
	"fmt"
	"testing"

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
