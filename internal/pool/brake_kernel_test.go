//go:build kernel

package pool

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestBrake_lateGrowth delays the growth of a store. That costs the writers time,
// but no snapshot.
func TestBrake_lateGrowth(t *testing.T) {
	const length = 400 * size.MiB
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.Devices = testDisks(t)[:2] })
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: length, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	p.config.FirstStore = 0
	before := digest(t, path, length)
	s := must(p.CreateSnapshot(ctx, "s", v.LV))(t)
	goOn, stuck, written := make(chan bool), make(chan error, 1), make(chan float64, 1)
	go func() { // no metadata is written during that time
		stuck <- p.do(ctx, &change{what: "keep others waiting", edit: func(*edit) error {
			<-goOn
			return nil
		}})
	}()
	go func() { written <- writeFast(t, path, size.MiB, true, length, 0) }()
	latest := must(p.latest())(t)
	snap, store := latest.snapDevice(latest.VG.LV(s.LV)), latest.cowDevice(latest.VG.LV(s.LV))
	held := func() bool { return must(p.find(store))(t).Suspended }
	for end := time.Now().Add(20 * time.Second); !held(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			close(goOn)
			t.Fatal("the writers are not held")
		}
	}
	time.Sleep(time.Second)
	atMost := must(p.snapshotStatus(snap.name))(t)
	time.Sleep(time.Second)
	if now := must(p.snapshotStatus(snap.name))(t); now != atMost || !held() {
		t.Errorf("while writers are held: %v, then %v", atMost, now)
	}
	close(goOn)
	ok(t, <-stuck)
	t.Logf("%.0f MB/s; when writers were held the store was filled to %v; they waited for %v", <-written/1e6, atMost, p.Brakes()[0].Sum)
	if s := must(p.Snapshot(ctx, s.LV))(t); s.Lost || digest(t, p.dm.Node(lvm2.DMName(p.vgName, s.LV, "")), length) != before {
		t.Errorf("the snapshot is lost (%v) or has other bytes", s.Lost)
	}
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestHold_noRoom makes writers wait while the live layer must not be lost, until
// there is room or until the layer need not be kept.
func TestHold_noRoom(t *testing.T) {
	const length = 240 * size.MiB
	ctx := context.Background()
	p := testPool(t, nil)
	var kept atomic.Bool
	p.keep = func(*view, *catalog.Volume) bool { return kept.Load() }
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: length, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	fill := func() { // leaves only a few free extents
		_, err := p.CreateVolume(ctx, VolumeSpec{Name: "fill", Size: must(p.Capacity(ctx))(t).MaxVolume, Mode: Block})
		ok(t, err)
	}
	p.config.LayerReserve, p.config.FirstStore = 15, 0
	fill()
	for _, then := range []string{"room", "let go"} {
		kept.Store(true)
		before := digest(t, path, length)
		s := must(p.CreateSnapshot(ctx, "s", v.LV))(t)
		written := make(chan float64, 1)
		go func() { written <- writeFast(t, path, size.MiB, true, length, 0) }()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if info := must(p.find(must(p.latest())(t).topDevice(must(p.latest())(t).VG.LV(v.LV))))(t); info.Suspended {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s: the writers are not held; snapshot lost: %v, free extents: %v", then, must(p.Snapshot(ctx, s.LV))(t).Lost, must(p.latest())(t).Free.Size())
			}
		}
		snapshot := p.dm.Node(lvm2.DMName(p.vgName, s.LV, ""))
		if digest(t, snapshot, length) != before {
			t.Errorf("%s: the snapshot has other bytes while writers are held", then)
		}
		if h := must(p.Health(ctx, v.LV))(t); len(h) != 2 || h[1].Reason != "WritersHeld" {
			t.Errorf("%s: health: %v", then, h)
		}
		select {
		case <-written:
			t.Errorf("%s: the writers were not held", then)
		case <-time.After(time.Second):
		}
		if then == "room" {
			ok(t, p.DeleteVolume(ctx, "fill"))
			<-written
			if s := must(p.Snapshot(ctx, s.LV))(t); s.Lost || digest(t, snapshot, length) != before {
				t.Errorf("the snapshot is lost (%v) or has other bytes", s.Lost)
			}
			ok(t, p.DeleteSnapshot(ctx, s.LV))
			waitIdle(t, p)
			fill()
			continue
		}
		kept.Store(false)
		<-written
		for end := time.Now().Add(20 * time.Second); !must(p.Snapshot(ctx, s.LV))(t).Lost; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the snapshot holds more than there is room for")
			}
		}
	}
	ok(t, p.Deactivate(ctx, v.LV))
}
