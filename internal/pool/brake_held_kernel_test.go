//go:build kernel

package pool

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// waitHeld waits until the writers of a volume are held.
func waitHeld(t *testing.T, p *Pool, lv string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		o := must(p.latest())(t).VolumeByLV(lv)
		if p.facts.holding.has(o.LV.ID) {
			if info, err := p.find(p.current.Load().topDevice(o.LV)); err == nil && info.Suspended {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatal("its writers are not held")
		}
	}
}

// overwrite overwrites all of a part of a volume. The channel returns the error.
func overwrite(t *testing.T, r *rand.Rand, path string, model content, from, to int) <-chan error {
	t.Helper()
	data := make(content, to-from)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	copy(model[from:], data)
	done := make(chan error, 1)
	buffer := directBuffer(t, size.MiB)
	go func() {
		for off := 0; off < len(data); off += len(buffer) {
			n := copy(buffer, data[off:])
			if err := writeFrom(path, int64(from+off), buffer[:n]); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	return done
}

// TestHold_byFormerProcess continues to hold a volume that a former process held
// and that cannot be hydrated, and releases it when there is room.
func TestHold_byFormerProcess(t *testing.T) {
	ctx := context.Background()
	disk := newBadDisk(t, testDisks(t)[0])
	p := testPool(t, func(c *Config) {
		c.Devices, c.HydrationRate, c.Chunk, c.LayerReserve = []string{disk.path}, size.MiB, 4*size.KiB, 1
	})
	t.Cleanup(func() { disk.fail(0, 0) })
	r := rand.New(rand.NewPCG(15, 16))
	base, model := snapped(t, p, r, "base", 160*size.MiB)
	v := must(p.latest())(t)
	disk.fail(sectorOf(v, v.VG.LV(base.LV), 0), 8)
	fill(t, p, v.Extents(base.Size)+v.Extents(leastStore(p.config.Chunk.Sectors(), p.peak()).Bytes())+p.reserve(v))
	f := restored(t, p, "base")
	at := must(p.Activate(ctx, f.LV))(t)
	fill(t, p, 0)
	written := overwrite(t, r, at, model, 32<<20, 160<<20)
	waitHeld(t, p, f.LV)
	config := p.config
	config.HydrationRate = 0
	ok(t, p.Close())
	p = openPool(t, config)
	// Hold immediately: room that comes before the monitor looks would otherwise
	// release nobody. A process that has not seen the write rate may release the
	// writers for a moment.
	now := must(p.latest())(t)
	o := now.VolumeByLV(f.LV)
	info := must(p.find(now.topDevice(o.LV)))(t)
	if info.Suspended && !p.facts.holding.has(o.LV.ID) {
		t.Error("the pool is open, but does not know that writers are held")
	}
	waitHeld(t, p, f.LV)
	select {
	case err := <-written:
		t.Fatalf("its writers continued: %v", err)
	case <-time.After(time.Second):
	}
	for _, f := range must(Verify(ctx, config, Options{}))(t).Findings {
		// The table after the hydration is only loaded, and not in use yet.
		if f.Reason != "DeviceSuspended" && f.Reason != "TablePending" {
			t.Errorf("check, while writers are held: %s %s: %s", f.Reason, f.Where, f.What)
		}
	}
	for _, lv := range must(p.latest())(t).VG.LVs {
		if strings.HasPrefix(lv.Name, "filler") {
			ok(t, p.DeleteVolume(ctx, lv.Name))
		}
	}
	select {
	case err := <-written:
		ok(t, err)
	case <-time.After(20 * time.Second):
		t.Fatal("there is room, but its writers are still held")
	}
	disk.fail(0, 0)
	waitHydrated(t, p, f.LV)
	model.compare(t, at, "the volume, hydrated")
	ok(t, p.Deactivate(ctx, f.LV))
}

// TestHold_nothingIsWiped holds writers for as long as hydration takes, if the only
// room is in trash that cannot be wiped.
func TestHold_nothingIsWiped(t *testing.T) {
	ctx := context.Background()
	disk := newBadDisk(t, testDisks(t)[0])
	p := testPool(t, func(c *Config) {
		c.Devices, c.HydrationRate, c.Chunk, c.LayerReserve = []string{disk.path}, size.MiB, 4*size.KiB, 1
	})
	t.Cleanup(func() { disk.fail(0, 0) })
	r := rand.New(rand.NewPCG(17, 18))
	base, model := snapped(t, p, r, "base", 160*size.MiB)
	junk := must(p.CreateVolume(ctx, VolumeSpec{Name: "junk", Size: 64 * size.MiB, Mode: Block}))(t)
	v := must(p.latest())(t)
	lv := v.VG.LV(junk.LV)
	disk.fail(sectorOf(v, lv, 0), sectors(v, lv.Size()))
	fill(t, p, v.Extents(base.Size)+v.Extents(leastStore(p.config.Chunk.Sectors(), p.peak()).Bytes())+p.reserve(v))
	f := restored(t, p, "base")
	at := must(p.Activate(ctx, f.LV))(t)
	fill(t, p, 0)
	ok(t, p.DeleteVolume(ctx, junk.LV))
	written := overwrite(t, r, at, model, 16<<20, 160<<20)
	select {
	case err := <-written:
		ok(t, err)
	case <-time.After(100 * time.Second):
		t.Fatal("its writers are held")
	}
	if v := must(p.latest())(t); len(v.Trash) == 0 {
		t.Error("all trash is wiped")
	}
	waitHydrated(t, p, f.LV)
	model.compare(t, at, "the volume, hydrated")
	ok(t, p.Deactivate(ctx, f.LV))
}
