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

// TestHeaderLost_cutWhileRead: a snapshot is being read while a disk forgets the header of
// its store. The next cut makes the kernel read the store again. The snapshot is then lost,
// and does not show other content.
func TestHeaderLost_cutWhileRead(t *testing.T) {
	eachForgotten(t, func(ctx context.Context, t *testing.T, p *Pool, v Volume, header []byte) {
		path := shows(t, p, v.LV, 3)
		defer p.hydrator.stop("f")()
		f := must(p.CreateVolume(ctx, VolumeSpec{Name: "f", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "newer"}}))(t)
		shows(t, p, f.LV, 2)
		now := must(p.latest())(t)
		forget(t, now, now.VG.LV("newer"), header)
		must(p.CreateSnapshot(ctx, "after", v.LV))(t)
		writeDevice(t, path, 0, bytes.Repeat([]byte{4}, 4096))
		unrestorable(t, p, "newer")
		unrestorable(t, p, "older")
		restores(t, p, "after", 3)
		shows(t, p, v.LV, 4)
		ok(t, p.Deactivate(ctx, f.LV))
		ok(t, p.DeleteVolume(ctx, f.LV))
		ok(t, p.Deactivate(ctx, v.LV))
	})
}

// TestHeaderLost_forkOverflowed: the driver loads the table of a full fork anew. If a disk
// has forgotten the header of the fork's store, the fork does not show its source's content
// where it was written.
func TestHeaderLost_forkOverflowed(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.HydrationRate, c.Chunk, c.BurstRate = size.MiB, 4*size.KiB, size.MiB })
	snapped(t, p, rand.New(rand.NewPCG(11, 12)), "base", 64*size.MiB)
	f := restored(t, p, "base")
	at := must(p.Activate(ctx, f.LV))(t)
	now := must(p.latest())(t)
	config := p.config
	ok(t, p.Close())
	part := bytes.Repeat([]byte{9}, int(256*size.KiB))
	begin := int64(32 * size.MiB)
	for off := begin; ; off += int64(len(part)) {
		if off >= int64(64*size.MiB) {
			t.Fatal("the store was never full")
		}
		if tryWrite(t, at, off, part) != nil {
			break
		}
	}
	forget(t, now, now.VolumeByLV(f.LV).Fork.LV, forgotten["zeroes"])
	p = openPool(t, config)
	b := directBuffer(t, 4096)
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		disk := must(os.OpenFile(at, os.O_RDONLY|unix.O_DIRECT, 0))(t)
		if _, err := disk.ReadAt(b, begin); err == nil && b[0] != 9 {
			t.Fatalf("the fork begins with %d where it was written with 9", b[0])
		}
		ok(t, disk.Close())
	}
	ok(t, p.Deactivate(ctx, f.LV))
	ok(t, p.DeleteVolume(ctx, f.LV))
}
