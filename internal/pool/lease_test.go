package pool

import (
	"context"
	"errors"
	"testing"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
)

// TestCommitter_lateActs: an act that hangs in the kernel does not keep the group's
// lock forever. After it returns, all volumes are checked, because LVM2 may have
// changed them.
func TestCommitter_lateActs(t *testing.T) {
	v := rollbackGroup(t)
	g := &group{log: klog.Background(), facts: newFacts(), settled: func(_, _ *view) {}}
	g.current.Store(v)
	closed, end := context.WithCancel(context.Background())
	g.ctx = closed
	end() // so that the metadata cannot be read
	stuck, fresh := &change{what: "stuck"}, &change{what: "fresh"}
	late, early := lease{group: g}, lease{group: g}
	c := committer{group: g, acts: map[*change]act{stuck: {time.Now().Add(-2 * lateLimit), &late}, fresh: {time.Now(), &early}}}
	c.leaveLate()
	if _, waited := c.acts[fresh]; len(c.acts) != 1 || !waited {
		t.Errorf("the committer waits for %v, want only the fresh change", c.acts)
	}
	if late.valid() == nil || early.valid() != nil {
		t.Errorf("the lease of the late act: %v, want an error; of the other act: %v, want none", late.valid(), early.valid())
	}
	unsettled := g.facts.unsettled.count
	if c.end(ended{fresh, v, v}); len(c.acts) != 0 || unsettled() != 0 {
		t.Errorf("after an act that ended in time, the committer waits for %v, and %d volumes are unsettled", c.acts, unsettled())
	}
	if c.end(ended{stuck, v, v}); unsettled() != v.Volumes.Len() {
		t.Errorf("after the late act, %d of %d volumes are unsettled, want all", unsettled(), v.Volumes.Len())
	}
}

// TestLease_endedBeforeStep: an act whose lease has ended clears no table and suspends
// and renames nothing, because LVM2 may have loaded the table. It makes no call to the
// kernel.
func TestLease_endedBeforeStep(t *testing.T) {
	over := &lease{}
	over.left.Store(true)
	over.over.Store(true)
	c := &carrier{Pool: &Pool{}, view: &view{lease: over}, k: kernel{"x": {}}}
	for _, do := range []stepKind{stepClear, stepSuspend, stepRename} {
		if err := c.change(t.Context(), step{do: do, device: device{name: "vg-v", uuid: "x"}}, c.k["x"]); !errors.Is(err, errLeft) {
			t.Errorf("step %v returned %v, want errLeft", do, err)
		}
	}
}

// silent returns a group whose committer waits for LVM2: it takes changes but does not
// answer.
func silent(t *testing.T) *group {
	g := &group{name: "pool", vgName: "vg", log: klog.Background(), facts: newFacts(), ctx: t.Context(),
		changes: make(chan *change, 1), urgent: make(chan *change, 1), stopped: make(chan struct{})}
	g.current.Store(rollbackGroup(t))
	return g
}

// TestLease_lvm2HasTheLock: an abandoned act does not wait until LVM2 releases the
// group's lock, because a device may be suspended and LVM2 may wait for it.
func TestLease_lvm2HasTheLock(t *testing.T) {
	t.Parallel()
	l := &lease{group: silent(t)}
	l.leave()
	began, ended := time.Now(), make(chan error, 1)
	go func() { ended <- l.valid() }()
	select {
	case err := <-ended:
		if took := time.Since(began); !errors.Is(err, errLeft) || took < leaseLook {
			t.Errorf("valid returned %v after %v", err, took)
		}
	case <-time.After(leaseLook + 5*time.Second):
		t.Fatal("valid waits for LVM2")
	}
	if began = time.Now(); !errors.Is(l.valid(), errLeft) || time.Since(began) > leaseLook/2 {
		t.Error("valid waits again, although the lease has ended")
	}
}

// TestRecorded_lvm2HasTheLock: an abandoned act does not wait for LVM2's lock to
// record a loss.
func TestRecorded_lvm2HasTheLock(t *testing.T) {
	g := silent(t)
	over := &lease{group: g}
	over.left.Store(true)
	over.over.Store(true)
	c := &convergence{Pool: &Pool{group: group{}}, view: &view{lease: over}}
	if err := c.recorded(t.Context(), &unrecordedLoss{layer: "s"}); !errors.Is(err, errLeft) {
		t.Errorf("recorded returned %v after the lease had ended, want errLeft", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- g.record(ctx, &unrecordedLoss{layer: "s"}) }()
	for end := time.Now().Add(5 * time.Second); len(g.urgent) == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) || len(g.urgent) != 1 {
			t.Errorf("record returned %v with %d urgent changes, want context.Canceled with one", err, len(g.urgent))
		}
	case <-time.After(5 * time.Second):
		t.Fatal("record waits for LVM2")
	}
}

// answer carries out the edits of the urgent changes, without a disk.
func (g *group) answer(ctx context.Context) {
	for {
		select {
		case c := <-g.urgent:
			b := g.apply(g.current.Load(), []*change{c})
			g.current.Store(b.next)
			for _, c := range append(b.todo, b.edited...) {
				c.done <- nil
			}
		case <-ctx.Done():
			return
		}
	}
}

// TestRecord_storeWasMoved: an invalid store that was read from the disks is no loss
// if LVM2 has moved the store meanwhile, because the read may have seen another store.
func TestRecord_storeWasMoved(t *testing.T) {
	for name, c := range map[string]struct {
		moved, read, lost bool
	}{
		"read where it is":                  {read: true, lost: true},
		"moved since it was read":           {read: true, moved: true},
		"moved, and the kernel reported it": {moved: true, lost: true},
	} {
		paper := newGroup(t)
		paper.volume("vol", 8)
		paper.cut("vol", "s0", 2)
		paper.cut("vol", "s1", 2)
		id, loss := paper.Snapshots.Get("s0").LV.ID, unrecordedLoss{layer: paper.Snapshots.Get("s0").LV.ID}
		if c.read {
			own := *paper.view()
			own.VG = own.VG.Clone()
			loss.read = &own
		}
		if c.moved {
			lv := paper.VG.LVByID(id).Clone()
			lv.Segments = catalog.AppendExtents(nil, paper.take(2))
			paper.check(paper.Put(lv))
		}
		g := silent(t)
		g.current.Store(paper.view())
		go g.answer(t.Context())
		if err := g.record(t.Context(), &loss); err != nil {
			t.Fatal(err)
		}
		if now := g.current.Load().Layers.Get(id); now.Lost != c.lost {
			t.Errorf("%s: recorded as lost: %v, want %v", name, now.Lost, c.lost)
		}
	}
}

// TestRecorded_volumesRemovedByLVM2: a convergence ends if LVM2 has removed all its
// volumes by the time that it has recorded a loss.
func TestRecorded_volumesRemovedByLVM2(t *testing.T) {
	paper := newGroup(t)
	paper.volume("vol", 8)
	now := paper.view()
	paper.volume("gone", 8)
	paper.cut("gone", "s0", 2)
	then := paper.view()
	p := newPool(t.Context(), Config{}, Options{})
	p.ctx = t.Context()
	p.current.Store(now)
	go p.answer(t.Context())
	c := p.convergence(then, "gone", demand{})
	if err := c.recorded(t.Context(), &unrecordedLoss{layer: then.Snapshots.Get("s0").LV.ID}); !errors.Is(err, errLeft) {
		t.Errorf("a convergence without volumes returned %v, want errLeft", err)
	}
	if c = p.convergence(then, "vol", demand{}); c.recorded(t.Context(), &unrecordedLoss{layer: then.Snapshots.Get("s0").LV.ID}) != nil || len(c.members) != 1 {
		t.Error("a convergence lost a volume that still exists")
	}
}
