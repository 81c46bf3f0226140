package pool

import (
	"context"
	"errors"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestFailed_whetherAnotherPlanHelps: the error of a step decides how often the
// convergence makes another plan before it ends. Then the step's volume is stuck,
// unless the lease had ended.
func TestFailed_whetherAnotherPlanHelps(t *testing.T) {
	ctx := context.Background()
	o := &catalog.Volume{LV: &lvm2.LV{Name: "v", ID: "v"}}
	for _, x := range []struct {
		why   error
		of    *catalog.Volume
		ends  int // number of failures that ends the convergence
		stuck bool
	}{
		{why: errors.New("refused"), of: o, ends: 2, stuck: true},
		{why: errors.New("refused"), ends: 2}, // a device of a deleted volume
		{why: dm.ErrNotFound, of: o, ends: 3, stuck: true},
		{why: dm.ErrNotFound, ends: 3},
		{why: dm.ErrExists, of: o, ends: 3, stuck: true},
		{why: errLeft, of: o, ends: 1},
	} {
		c := &convergence{Pool: &Pool{}, view: &view{View: &catalog.View{VG: &lvm2.VG{Name: "vg"}}}, stuck: map[lvm2.ID]error{}, strays: map[string]error{}, again: map[string]bool{}}
		err := &stepError{step{do: stepRename, device: device{uuid: "device"}, of: x.of}, x.why}
		n := 1
		for c.failed(ctx, err) == nil {
			n++
		}
		if n != x.ends {
			t.Errorf("%v, of a volume: %v: the convergence ends after %d failures, want %d", x.why, x.of != nil, n, x.ends)
		}
		if x.stuck != (c.stuck["v"] != nil) {
			t.Errorf("%v: the stuck volumes are %v", x.why, c.stuck)
		}
	}
}

// TestFailed_openDevice: a device that is open and cannot be removed does not end the
// convergence. Its removal is retried later.
func TestFailed_openDevice(t *testing.T) {
	o := &catalog.Volume{LV: &lvm2.LV{Name: "v", ID: "v"}}
	g := newGroup(t)
	c := &convergence{Pool: &Pool{}, view: g.view(), refusedAt: map[lvm2.ID]bool{}}
	err := &stepError{step{do: stepRemove, device: device{uuid: "device"}, of: o}, ErrInUse}
	if failed := c.failed(context.Background(), err); failed != nil || !c.refusedAt[o.LV.ID] {
		t.Errorf("failed returned %v; volumes to retry: %v", failed, c.refusedAt)
	}
}

// TestLeftBehind_untilDevicesFollow: a volume whose devices do not match the view
// stays unsettled until they do.
func TestLeftBehind_untilDevicesFollow(t *testing.T) {
	r := newRig(newGroup(t))
	r.volume("vol", 8)
	r.cut("vol", "s1", 8)
	r.converge("activation", situation{active: []string{"vol"}})
	family := r.paperGroup.family("vol")
	o := r.VolumeByLV("vol")
	top, cow := r.view().topDevice(o.LV).uuid, r.view().cowDevice(o.Live().LV).uuid
	for _, x := range []struct {
		name   string
		why    error
		before bool
		k      kernel
		behind bool
	}{
		{"as wanted", nil, true, r.kernel, false},
		{"it was unsettled", ErrUnavailable, true, r.kernel, true},
		{"nothing has changed", ErrUnavailable, false, r.kernel, false},
		{"its live layer has no device", ErrUnavailable, false, kernel{top: r.kernel[top]}, true},
		{"it is not in use", ErrUnavailable, true, kernel{}, false},
		{"it is lost", ErrLost, true, r.kernel, false},
	} {
		w := r.view().want(family, r.inUseBy([]string{"vol"}), running{}, r.kernel)
		if x.why != nil {
			w.kept[cow] = x.why
		}
		c := &convergence{view: r.view(), members: family, want: w, kernel: x.k}
		if got := c.leftBehind(map[lvm2.ID]bool{o.LV.ID: x.before}); (got[o.LV.ID] != nil) != x.behind {
			t.Errorf("%s: the volumes left behind are %v", x.name, got)
		}
	}
}
