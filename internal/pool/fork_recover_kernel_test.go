//go:build kernel

package pool

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// tryWrite writes to a device and returns the kernel's error.
func tryWrite(t *testing.T, path string, off int64, data []byte) error {
	t.Helper()
	b := directBuffer(t, size.Bytes(len(data)))
	copy(b, data)
	return writeFrom(path, off, b)
}

// writeFrom is tryWrite for a buffer that O_DIRECT accepts.
func writeFrom(path string, off int64, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(b, off)
	return err
}

// snapped makes a volume of that size and a snapshot of it, and returns their common
// content.
func snapped(t *testing.T, p *Pool, r *rand.Rand, name string, length size.Bytes) (Volume, content) {
	t.Helper()
	ctx := context.Background()
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: name, Size: length, Mode: Block}))(t)
	model := make(content, length)
	model.scribble(t, r, must(p.Activate(ctx, v.LV))(t), 100)
	must(p.CreateSnapshot(ctx, "snap"+name, v.LV))(t)
	ok(t, p.Deactivate(ctx, v.LV))
	return v, model
}

// restored makes a fork of the snapshot that snapped made.
func restored(t *testing.T, p *Pool, name string) Volume {
	t.Helper()
	return must(p.CreateVolume(context.Background(), VolumeSpec{Name: "fork" + name, Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snap" + name}}))(t)
}

// TestRecoverFork_overflowWhileDriverAway: a fork whose store became full while the
// driver was away has lost no acknowledged write, and can be written again.
func TestRecoverFork_overflowWhileDriverAway(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.HydrationRate, c.Chunk, c.BurstRate = size.MiB, 4*size.KiB, size.MiB })
	r := rand.New(rand.NewPCG(11, 12))
	_, model := snapped(t, p, r, "base", 64*size.MiB)
	f := restored(t, p, "base")
	at := must(p.Activate(ctx, f.LV))(t)
	config := p.config
	ok(t, p.Close())
	part := make([]byte, 256*size.KiB)
	full := int64(-1)
	for off := int64(len(model) / 4); off < int64(len(model)); off += int64(len(part)) {
		for i := range part {
			part[i] = byte(r.Uint32())
		}
		if err := tryWrite(t, at, off, part); err != nil {
			full = off
			break
		}
		copy(model[off:], part)
	}
	if full < 0 {
		t.Fatal("the store was never full")
	}
	p = openPool(t, config)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err := tryWrite(t, at, full, part); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatalf("the fork cannot be written again: %v", err)
		}
	}
	copy(model[full:], part)
	model.compare(t, at, "the fork that had overflowed")
	content(model[full:]).scribbleAt(t, r, at, int(full), 200)
	model.compare(t, at, "the fork, written again")
	ok(t, p.Deactivate(ctx, f.LV))
	config.HydrationRate = 0
	ok(t, p.Close())
	p = openPool(t, config)
	waitHydrated(t, p, f.LV)
	model.compare(t, must(p.Activate(ctx, f.LV))(t), "the volume, hydrated")
	ok(t, p.Deactivate(ctx, f.LV))
}

// TestShutWindows_heldWrites: a mirror left by a former process holds back a write,
// because a disk failed. The next process releases the write. It fails only if the
// window is committed, so that it must go to the bad disk.
func TestShutWindows_heldWrites(t *testing.T) {
	ctx := context.Background()
	for _, committed := range []bool{false, true} {
		t.Run(map[bool]string{false: "before the commit", true: "after it"}[committed], func(t *testing.T) {
			disk := newBadDisk(t, testDisks(t)[0])
			p := testPool(t, func(c *Config) { c.Devices, c.HydrationRate = []string{disk.path}, 8*size.MiB })
			t.Cleanup(func() { disk.fail(0, 0) })
			r := rand.New(rand.NewPCG(13, 14))
			_, model := snapped(t, p, r, "base", 32*size.MiB)
			f := restored(t, p, "base")
			at := must(p.Activate(ctx, f.LV))(t)
			p.hydrator.stop(f.LV)
			w := must(p.hydrator.open(ctx, f.LV, &search{}, size.MiB.Sectors()))(t)
			ok(t, p.hydrator.await(ctx, f.LV, w, func() {}))
			if committed {
				ok(t, p.hydrator.commit(ctx, f.LV, w))
			}
			v := must(p.latest())(t)
			config := p.config
			ok(t, p.Close())
			disk.fail(sectorOf(v, v.VG.LV(f.LV), w.Start+64), 8)
			data := directBuffer(t, 4096)
			copy(data, bytes.Repeat([]byte{'x'}, len(data)))
			off := (w.Start + 64).Bytes()
			written := make(chan error, 1)
			go func() { written <- writeFrom(at, int64(off), data) }()
			select {
			case err := <-written:
				t.Fatalf("the mirror did not hold the write: %v", err)
			case <-time.After(300 * time.Millisecond):
			}
			p = openPool(t, config)
			select {
			case err := <-written:
				if (err != nil) != committed {
					t.Errorf("the write that was held returned %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Error("the write is still held")
			}
			disk.fail(0, 0)
			copy(model[off:], data)
			writeDevice(t, at, int64(off), data)
			model.compare(t, at, "the fork")
			waitHydrated(t, p, f.LV)
			model.compare(t, at, "the volume, hydrated")
			ok(t, p.Deactivate(ctx, f.LV))
		})
	}
}
