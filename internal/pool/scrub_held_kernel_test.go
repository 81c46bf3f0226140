//go:build kernel

package pool

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestScrub_writersNotHeld does not hold the writers of a volume that is being
// wiped, and ends an earlier hold: the wipe has the key that the release needs.
func TestScrub_writersNotHeld(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.LayerReserve = 1 })
	b := must(p.CreateVolume(ctx, VolumeSpec{Name: "b", Size: 64 * size.MiB, Mode: Filesystem, FSType: "ext4"}))(t)
	must(p.CreateSnapshot(ctx, "snapb", b.LV))(t)
	for _, before := range []bool{false, true} {
		name := map[bool]string{false: "f1", true: "f2"}[before]
		f := must(p.CreateVolume(ctx, VolumeSpec{Name: name, Mode: Filesystem, FSType: "ext4", Source: Source{Kind: FromSnapshot, LV: "snapb"}}))(t)
		hydrate := p.hydrator.stop(f.LV)
		v := must(p.latest())(t)
		o := v.VolumeByLV(f.LV)
		if len(p.unwiped(v, o)) == 0 {
			t.Fatal("there is nothing to wipe: this test shows nothing")
		}
		s := v.ForkStore(o)
		ok(t, p.do(ctx, &change{what: "fork", act: func(ctx context.Context, v *view) error {
			return p.forkUp(ctx, v, v.Volumes.Get(o.LV.ID))
		}}))
		cow := v.cowDevice(s.LV)
		g := &growth{storeID: s.LV.ID} // a brake that delays the end of the wipe
		g.braked.Store(true)
		p.facts.growing.put(s.LV.ID, g)
		ok(t, p.dm.Suspend(ctx, cow.name, dm.SuspendOptions{SkipLockFS: true}))
		fill(t, p, 0)
		active := make(chan error, 1)
		go func() {
			_, err := p.Activate(ctx, f.LV)
			active <- err
		}()
		for end := time.Now().Add(10 * time.Second); !p.scrubbing(f.LV); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("it is not wiped")
			}
		}
		if before { // a hold that began a moment ago
			g := p.newGrowth(s, 0)
			p.facts.holding.put(o.LV.ID, g)
			p.background(func(ctx context.Context) { p.holdVolume(ctx, o.LV.ID, g) })
		} else {
			p.startHold(s, 0)
		}
		time.Sleep(100 * time.Millisecond)
		p.facts.growing.drop(s.LV.ID)
		ok(t, p.dm.Resume(cow.name, cow.udev))
		select {
		case err := <-active:
			ok(t, err)
		case <-time.After(20 * time.Second):
			t.Fatal("it is held, and the wipe waits")
		}
		if p.facts.holding.has(o.LV.ID) {
			t.Error("its writers are still held")
		}
		for _, v := range must(p.Volumes(ctx))(t) {
			if strings.HasPrefix(v.LV, "filler") {
				ok(t, p.DeleteVolume(ctx, v.LV))
			}
		}
		waitIdle(t, p)
		hydrate()
		waitHydrated(t, p, f.LV)
		ok(t, p.Deactivate(ctx, f.LV))
		ok(t, p.DeleteVolume(ctx, f.LV))
		waitIdle(t, p)
	}
}
