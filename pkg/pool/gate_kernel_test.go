//go:build kernel

package pool

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// gatesNow counts the gates that the group has in the kernel.
func gatesNow(t *testing.T, p *Pool) (n int) {
	t.Helper()
	ok(t, p.eachGate(func(dm.ListEntry, lvm2.ID, bool) error { n++; return nil }))
	return n
}

// ofGate is how many devices more an active volume with snapshots has by its gate.
func ofGate(p *Pool) int {
	if p.config.Gate {
		return 1
	}
	return 0
}

// TestGateFullSpeed: volumes are written to at full speed with stores of the least
// size, and no snapshot is lost or changed.
func TestGateFullSpeed(t *testing.T) {
	const length = 160 * size.MiB
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.Devices, c.FirstStore, c.Gate = testDisks(t)[:2], 4*size.MiB, true })
	var vols []Volume
	var paths []string
	for i := range 2 {
		vols = append(vols, must(p.CreateVolume(ctx, VolumeSpec{Name: fmt.Sprintf("v%d", i), Size: length, Mode: Block}))(t))
		paths = append(paths, must(p.Activate(ctx, vols[i].LV))(t))
	}
	for i, c := range []struct {
		chunk, block size.Bytes
		direct       bool
	}{
		{16 * size.KiB, 4 * size.KiB, true}, {4 * size.KiB, 4 * size.KiB, false}, {4 * size.KiB, size.MiB, true}, {64 * size.KiB, size.MiB, false},
	} {
		p.config.Chunk = c.chunk
		var before [2][32]byte
		for k, v := range vols {
			before[k] = digest(t, paths[k], length)
			must(p.CreateSnapshot(ctx, fmt.Sprintf("s%d-%d", i, k), v.LV))(t)
		}
		start := time.Now()
		var sum float64
		var mu sync.Mutex
		var writers sync.WaitGroup
		for k := range vols {
			writers.Go(func() {
				fast := writeFast(t, paths[k], c.block, c.direct, length, 5*time.Second)
				mu.Lock()
				sum += fast
				mu.Unlock()
			})
		}
		writers.Wait()
		t.Logf("chunk %v, block %v, direct %v: %.0f MB/s in %v, %d gates", c.chunk, c.block, c.direct, sum/1e6, time.Since(start).Round(time.Millisecond), gatesNow(t, p))
		for k := range vols {
			s := must(p.Snapshot(ctx, fmt.Sprintf("s%d-%d", i, k)))(t)
			path := p.dm.Node(lvm2.DMName(p.vgName, s.LV, ""))
			if s.Lost || digest(t, path, length) != before[k] {
				t.Errorf("snapshot %s is lost (%v) or has other bytes", s.Name, s.Lost)
			}
			ok(t, p.DeleteSnapshot(ctx, s.LV))
		}
		waitIdle(t, p)
	}
	for _, v := range vols {
		ok(t, p.Deactivate(ctx, v.LV))
	}
	if n := gatesNow(t, p); n != 0 {
		t.Errorf("%d gates are left", n)
	}
}

// closedEnd returns the gate at the end of a snapshot's store, which must be suspended.
func closedEnd(t *testing.T, p *Pool, lv string) *gate {
	t.Helper()
	v := must(p.latest())(t)
	g := must(p.endGate(v, v.vg.LV(lv)))(t)
	if g == nil {
		t.Fatalf("the store of %s has no gate", lv)
	}
	if info := must(p.dm.Info(g.name))(t); !info.Suspended {
		t.Errorf("gate %s is open", g.name)
	}
	return g
}

// behind waits until somebody waits at the gate of a snapshot's store.
func behind(t *testing.T, p *Pool, lv string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		v := must(p.latest())(t)
		s := must(p.snapshotStatus(v.snapDevice(v.vg.LV(lv)).name))(t)
		if s.Used > v.bytesOf(v.vg.LV(lv)).Sectors() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("nobody waits: %v", s)
		}
	}
}

// stopGrowth keeps the monitor from a snapshot's store.
func stopGrowth(t *testing.T, p *Pool, lv string) (goOn func()) {
	id := must(p.latest())(t).vg.LV(lv).ID
	g := &growth{store: id}
	for { // not while it grows
		if _, first := p.facts.growing.claim(id, g); first {
			return func() { p.facts.growing.drop(id) }
		}
		time.Sleep(time.Millisecond)
	}
}

// TestGateReopened: the kernel reads ahead of the lists of a store when its snapshot
// is made again; it must not wait at the gate.
func TestGateReopened(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.FirstStore, c.Chunk, c.Gate = 8*size.MiB, 4*size.KiB, true })
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 256 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	s := must(p.CreateSnapshot(ctx, "s", v.LV))(t)
	writeDevice(t, path, 0, make([]byte, 2<<20))
	for _, how := range []string{"deactivated", "closed"} {
		closedEnd(t, p, s.LV)
		ok(t, p.Deactivate(ctx, v.LV))
		if n := gatesNow(t, p); n != 0 {
			t.Fatalf("%s: %d gates are left", how, n)
		}
		if how == "closed" {
			ok(t, p.Close())
			p = openPool(t, p.config)
		}
		began := time.Now()
		path = must(p.Activate(ctx, v.LV))(t)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: it took %v to activate the volume again", how, took)
		}
	}
	writeFast(t, path, size.MiB, true, v.Size, 0)
	if now := must(p.Snapshot(ctx, "s"))(t); now.Lost || firstByte(t, p.dm.Node(lvm2.DMName(p.vgName, s.LV, "")), 0, v.Size) != -1 {
		t.Errorf("the snapshot is lost (%v) or has other bytes", now.Lost)
	}
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestGateKilledGrowth: a process dies at each step of a growth, with a writer at the
// gate, or beyond it. Its successor lets the writer go on, and nothing is lost.
func TestGateKilledGrowth(t *testing.T) {
	const length = 64 * size.MiB
	ctx := context.Background()
	p := testPool(t, func(c *Config) {
		c.FirstStore, c.Chunk, c.Gate, c.WaitForDriver = 4*size.MiB, 4*size.KiB, true, true // as if it were killed
	})
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: length, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	whole := t // the pool outlives the step in which it is opened
	for _, step := range []string{"none", "committed", "made", "loaded", "opened", "flat loaded", "flat suspended"} {
		t.Run(step, func(t *testing.T) {
			before := digest(t, path, length)
			s := must(p.CreateSnapshot(ctx, "s", v.LV))(t)
			stopGrowth(t, p, s.LV)
			written := make(chan float64, 1)
			go func() { written <- writeFast(t, path, size.MiB, true, length, 0) }()
			behind(t, p, s.LV)
			former := closedEnd(t, p, s.LV)
			if step != "none" {
				halfGrown(t, p, s.LV, former, step)
			}
			ok(t, p.Close())
			select {
			case <-written:
				t.Error("the writer did not wait")
			default:
			}
			began := time.Now()
			p = openPool(whole, p.config)
			<-written
			t.Logf("opened, and written in %v", time.Since(began))
			now := must(p.Snapshot(ctx, "s"))(t)
			if now.Lost || digest(t, p.dm.Node(lvm2.DMName(p.vgName, s.LV, "")), length) != before {
				t.Errorf("the snapshot is lost (%v) or has other bytes", now.Lost)
			}
			ok(t, p.DeleteSnapshot(ctx, "s"))
			waitIdle(t, p)
			if n := gatesNow(t, p); n != 0 {
				t.Errorf("%d gates are left", n)
			}
		})
	}
	ok(t, p.Deactivate(ctx, v.LV))
}

// halfGrown does a growth of 4 MiB up to a step.
func halfGrown(t *testing.T, p *Pool, lv string, former *gate, step string) {
	ctx := context.Background()
	at := 0
	done := func(name string) bool { // of the steps after the commit
		at++
		return step == []string{"", "committed", "made", "loaded", "opened", "flat loaded", "flat suspended"}[at]
	}
	ok(t, p.do(ctx, &change{what: "grow", edit: func(e *edit) error {
		c := e.vg.LV(lv).Clone()
		ranges, err := e.growth(c, e.extents(4*size.MiB), highEnd)
		if err != nil {
			return err
		}
		c.Segments = appendExtents(c.Segments, ranges...)
		return e.put(c)
	}}))
	if done("committed") {
		return
	}
	view := must(p.latest())(t)
	store := view.vg.LV(lv)
	d := view.cowDevice(store)
	live := must(p.tableOf(d))(t)
	most := live.Length()
	flat := must(view.linearTable(store))(t)
	next := must(p.makeGate(ctx, view, store, must(p.gatesOf(view, store, live))(t), most-flat.Length()))(t)
	if done("made") {
		return
	}
	want := append(flat, dm.Segment{Start: flat.Length(), Length: most - flat.Length(), Target: dm.Linear{Device: next.dev}})
	if step == "loaded" {
		ok(t, p.dm.Load(former.name, whole(former.table.Length(), dm.Zero{}), false)) // must not be taken
		return
	}
	at++
	ok(t, p.openGate(former, want))
	if done("opened") {
		return
	}
	ok(t, p.dm.Load(d.name, want, false))
	if done("flat loaded") {
		return
	}
	time.Sleep(100 * time.Millisecond)
	limited, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	began := time.Now()
	err := p.dm.Suspend(limited, d.name, dm.SuspendOptions{SkipLockFS: true})
	t.Logf("suspending the store while a writer is at its gate took %v: %v", time.Since(began), err)
}

// TestGateWindows: a volume is cut, expanded, deleted and closed while its writers wait
// at the gate.
func TestGateWindows(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.FirstStore, c.Chunk, c.Gate = 4*size.MiB, 4*size.KiB, true })
	const length = 64 * size.MiB
	for _, what := range []string{"cut", "cut while an older one is read", "expand", "delete the snapshot"} {
		t.Run(what, func(t *testing.T) {
			v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: length, Mode: Block}))(t)
			path := must(p.Activate(ctx, v.LV))(t)
			s := must(p.CreateSnapshot(ctx, "s", v.LV))(t)
			var reader *os.File
			if what == "cut while an older one is read" {
				o := must(p.latest())(t)
				f := must(p.dm.EnsureNode(ctx, o.snapDevice(o.vg.LV(s.LV)).name, must(p.find(o.snapDevice(o.vg.LV(s.LV))))(t).Device))(t)
				reader = must(os.Open(f))(t)
			}
			goOn := stopGrowth(t, p, s.LV)
			written := make(chan float64, 1)
			go func() { written <- writeFast(t, path, size.MiB, true, length, 0) }()
			behind(t, p, s.LV)
			time.AfterFunc(500*time.Millisecond, goOn)
			began := time.Now()
			switch what {
			case "expand":
				must(p.ExpandVolume(ctx, v.LV, 2*length, 0))(t)
			case "delete the snapshot":
				ok(t, p.DeleteSnapshot(ctx, "s"))
			default:
				must(p.CreateSnapshot(ctx, "s2", v.LV))(t)
			}
			t.Logf("%s took %v", what, time.Since(began))
			<-written
			if what != "delete the snapshot" {
				if now := must(p.Snapshot(ctx, "s"))(t); now.Lost {
					t.Errorf("the snapshot is lost")
				}
				at := must(p.CreateVolume(ctx, VolumeSpec{Name: "r", Mode: Block, Source: Source{FromSnapshot, s.LV}}))(t)
				if firstByte(t, must(p.Activate(ctx, at.LV))(t), 0, length) != -1 {
					t.Error("the snapshot has other bytes")
				}
				reader.Close()
				waitHydrated(t, p, at.LV)
				ok(t, p.Deactivate(ctx, at.LV))
				ok(t, p.DeleteVolume(ctx, at.LV))
				ok(t, p.DeleteSnapshot(ctx, "s"))
				if what != "expand" {
					ok(t, p.DeleteSnapshot(ctx, "s2"))
				}
			}
			ok(t, p.Deactivate(ctx, v.LV))
			ok(t, p.DeleteVolume(ctx, v.LV))
			waitIdle(t, p)
			if n := gatesNow(t, p); n != 0 {
				t.Errorf("%d gates are left", n)
			}
		})
	}
}
