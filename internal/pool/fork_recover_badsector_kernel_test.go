//go:build kernel

package pool

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestRecoverFork_badSector: the kernel marks a fork invalid when part of a chunk is
// written and the rest cannot be read. Only this write fails permanently; no other
// write to the fork is lost, in this process or the next.
func TestRecoverFork_badSector(t *testing.T) {
	ctx := context.Background()
	const bad = size.Sectors(4096)
	disk := newBadDisk(t, testDisks(t)[0])
	p := testPool(t, func(c *Config) { c.Devices, c.HydrationRate = []string{disk.path}, size.MiB })
	t.Cleanup(func() { disk.fail(0, 0) })
	r := rand.New(rand.NewPCG(19, 20))
	base, model := snapped(t, p, r, "base", 24*size.MiB)
	v := must(p.latest())(t)
	disk.fail(sectorOf(v, v.VG.LV(base.LV), bad), 8)
	f := restored(t, p, "base")
	hydrate := p.hydrator.stop(f.LV) // otherwise the written chunks would soon be hydrated
	at := must(p.Activate(ctx, f.LV))(t)
	from := int(bad.Bytes() + size.MiB)
	behind := model[from:]
	stopped := func() bool {
		v := must(p.latest())(t)
		s, err := p.snapshotStatus(v.forkDevice(v.VolumeByLV(f.LV).LV).name)
		return err == nil && s.Invalid
	}
	for round := range 3 {
		behind.scribbleAt(t, r, at, from, 50)
		if err := tryWrite(t, at, int64(bad.Bytes()+4096), make([]byte, 4096)); err == nil {
			t.Fatal("writing a part of an unreadable chunk succeeded")
		}
		if round == 0 && !stopped() {
			t.Error("the kernel did not mark the fork invalid, so this test proves nothing")
		}
		if round == 1 {
			config := p.config
			ok(t, p.Close())
			p = openPool(t, config)
			hydrate = p.hydrator.stop(f.LV)
		}
		for end := time.Now().Add(15 * time.Second); tryWrite(t, at, int64(bad.Bytes()+2*size.MiB), model[bad.Bytes()+2*size.MiB:][:4096]) != nil; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("round %d: the fork can no longer be written: %v", round, must(p.Health(ctx, f.LV))(t))
			}
		}
		behind.compareAt(t, at, from, "the fork, invalid and revived")
	}
	hydrate()
	failing := func(c Condition) bool { return c.Reason == "HydrationFailing" }
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) { // until the hydration reaches the bad sector
		h := must(p.Health(ctx, f.LV))(t)
		if slices.ContainsFunc(h, failing) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the fork's health is %v, want HydrationFailing", h)
		}
	}
	disk.fail(0, 0)
	ok(t, p.Deactivate(ctx, f.LV))
	config := p.config
	config.HydrationRate = 0
	ok(t, p.Close())
	p = openPool(t, config)
	waitHydrated(t, p, f.LV)
	model.compare(t, must(p.Activate(ctx, f.LV))(t), "the volume, hydrated")
	ok(t, p.Deactivate(ctx, f.LV))
}
