package pool

import (
	"context"
	"errors"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestFailedStep: a step that fails ends the convergence of a family only where no other
// plan can do better.
func TestFailedStep(t *testing.T) {
	ctx := context.Background()
	o := &volume{lv: &lvm2.LV{Name: "v", ID: "v"}}
	for _, x := range []struct {
		why   error
		of    *volume
		ends  int // how often it has failed when it ends the convergence
		stuck bool
	}{
		{why: errors.New("refused"), of: o, ends: 2, stuck: true},
		{why: errors.New("refused"), ends: 2}, // of what was deleted
		{why: dm.ErrNotFound, of: o, ends: 3, stuck: true},
		{why: dm.ErrNotFound, ends: 3},
		{why: dm.ErrExists, of: o, ends: 3, stuck: true},
		{why: errLeft, of: o, ends: 1},
	} {
		c := &convergence{Pool: &Pool{}, view: &view{vg: &lvm2.VG{Name: "vg"}}, stuck: map[lvm2.ID]error{}, strays: map[string]error{}, again: map[string]bool{}}
		err := &stepError{step{do: stepRename, device: device{uuid: "device"}, of: x.of}, x.why}
		n := 1
		for c.failed(ctx, err) == nil {
			n++
		}
		if n != x.ends {
			t.Errorf("%v, of a volume: %v: it ends after %d failures", x.why, x.of != nil, n)
		}
		if x.stuck != (c.stuck["v"] != nil) {
			t.Errorf("%v: stuck: %v", x.why, c.stuck)
		}
	}
}

// TestRefusedRemoval: a device that is open when it is to be removed is looked at again.
func TestRefusedRemoval(t *testing.T) {
	o := &volume{lv: &lvm2.LV{Name: "v", ID: "v"}}
	g := newGroup(t)
	c := &convergence{Pool: &Pool{}, view: g.view, refusedAt: map[lvm2.ID]bool{}}
	err := &stepError{step{do: stepRemove, device: device{uuid: "device"}, of: o}, ErrInUse}
	if failed := c.failed(context.Background(), err); failed != nil || !c.refusedAt[o.lv.ID] {
		t.Errorf("%v; looked at again: %v", failed, c.refusedAt)
	}
}
