package pool

import (
	"context"
	"errors"
	"testing"
	"time"

	"k8s.io/klog/v2"
)

// What hangs in the kernel does not keep the group's lock for ever, and when it
// returns all volumes are looked after: LVM2 may have changed them meanwhile.
func TestLateActs(t *testing.T) {
	v := rollbackGroup(t)
	g := &group{log: klog.Background(), facts: newFacts(), settled: func(_, _ *view) {}}
	g.current.Store(v)
	closed, end := context.WithCancel(context.Background())
	g.ctx = closed
	end() // so the metadata cannot be looked at
	stuck, fresh := &change{what: "stuck"}, &change{what: "fresh"}
	late, early := lease{group: g}, lease{group: g}
	c := committer{group: g, acts: map[*change]act{stuck: {time.Now().Add(-2 * lateLimit), &late}, fresh: {time.Now(), &early}}}
	c.leaveLate()
	if _, waited := c.acts[fresh]; len(c.acts) != 1 || !waited {
		t.Errorf("it waits for %v", c.acts)
	}
	if late.valid() == nil || early.valid() != nil {
		t.Errorf("what hangs may load tables: %v; what does not may not: %v", late.valid(), early.valid())
	}
	unsettled := g.facts.unsettled.count
	if c.end(ended{fresh, v, v}); len(c.acts) != 0 || unsettled() != 0 {
		t.Errorf("after the end of one in time it waits for %v, %d volumes are to be looked after", c.acts, unsettled())
	}
	if c.end(ended{stuck, v, v}); unsettled() != len(v.volumes) {
		t.Errorf("%d of %d volumes are looked after", unsettled(), len(v.volumes))
	}
}

// An act whose lease has ended clears no table, suspends and renames nothing: LVM2 may
// have loaded the table. It does not reach the kernel.
func TestLeaseOfCarrier(t *testing.T) {
	over := &lease{}
	over.left.Store(true)
	over.over.Store(true)
	c := &carrier{Pool: &Pool{}, view: &view{lease: over}, k: kernel{"x": {}}}
	for _, do := range []stepKind{stepClear, stepSuspend, stepRename} {
		if err := c.change(t.Context(), step{do: do, device: device{name: "vg-v", uuid: "x"}}, c.k["x"]); !errors.Is(err, errLeft) {
			t.Errorf("%v: %v", do, err)
		}
	}
}
