//go:build kernel

package pool

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestTrim_belowReader: while a snapshot is read, the unused ends of its store and of the
// newer stores that it reads through are freed. The reader sees no other content.
func TestTrim_belowReader(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.FirstStore, c.Chunk = 16*size.MiB, 4*size.KiB })
	r := rand.New(rand.NewPCG(21, 22))
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 32 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	base := make(content, v.Size)
	base.scribble(t, r, path, 100)
	s := must(p.CreateSnapshot(ctx, "s0", v.LV))(t)
	shown := content(bytes.Clone(base))
	reader := must(p.CreateVolume(ctx, VolumeSpec{Name: "reader", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: s.LV}}))(t)
	at := must(p.Activate(ctx, reader.LV))(t)
	for i := 1; i <= 3; i++ {
		base.scribble(t, r, path, 30)
		must(p.CreateSnapshot(ctx, fmt.Sprint("s", i), v.LV))(t)
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			shown.compare(t, at, "the snapshot, while stores are trimmed")
			left := 0
			w := must(p.latest())(t)
			o := w.VolumeByLV(v.LV)
			for _, l := range o.Layers[:len(o.Layers)-1] {
				if !l.Trimmed || sectors(w, l.LV.Size()) >= l.Used+w.VG.ExtentSize {
					left++
				}
			}
			if left == 0 {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%d stores of %d are not trimmed", left, len(o.Layers)-1)
			}
		}
	}
	waitIdle(t, p) // the freed extents are wiped
	shown.compare(t, at, "the snapshot, after the freed extents were wiped")
	noFindings(t, p)
	ok(t, p.Deactivate(ctx, reader.LV))
	shown.compare(t, must(p.Activate(ctx, reader.LV))(t), "the snapshot, activated again")
	noFindings(t, p)
	ok(t, p.Deactivate(ctx, reader.LV))
	base.compare(t, path, "the volume")
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestTrim_withoutDevice: a store is trimmed even if its device cannot be made, because
// the driver reads the store from the disks.
func TestTrim_withoutDevice(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.FirstStore = 16 * size.MiB })
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 32 * size.MiB, Mode: Block}))(t)
	writeDevice(t, must(p.Activate(ctx, v.LV))(t), 0, bytes.Repeat([]byte("A"), 4096))
	s := must(p.CreateSnapshot(ctx, "s", v.LV))(t)
	writeDevice(t, p.DevicePath(v.LV), 0, bytes.Repeat([]byte("B"), 4096))
	ok(t, p.Deactivate(ctx, v.LV))
	stranger := p.vgName + "-s-cow"
	must(p.dm.Create(stranger, "a-stranger"))(t)
	must(p.CreateSnapshot(ctx, "next", v.LV))(t)
	trimmed := func() bool {
		w := must(p.latest())(t)
		l := w.SnapshotByLV(s.LV)
		return l.Trimmed && w.BytesOf(l.LV) == w.ExtentSize()
	}
	for end := time.Now().Add(10 * time.Second); !trimmed(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the store was not trimmed within 10 s")
		}
	}
	ok(t, p.dm.Remove(stranger, 0))
	r := must(p.CreateVolume(ctx, VolumeSpec{Name: "r", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: s.LV}}))(t)
	if got := readDevice(t, must(p.Activate(ctx, r.LV))(t), 4096); got[0] != 'A' {
		t.Errorf("the snapshot reads %q, want A", got[:8])
	}
	ok(t, p.Deactivate(ctx, r.LV))
}

// TestTrim_usesOnlyChanges: a frozen store is trimmed to the chunks that changed until
// the next snapshot.
func TestTrim_usesOnlyChanges(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.FirstStore = 48 * size.MiB })
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 64 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	must(p.CreateSnapshot(ctx, "s1", v.LV))(t)
	for i := range int64(10) { // 10 MiB of exceptions
		writeDevice(t, path, i<<20, bytes.Repeat([]byte{byte(i + 1)}, 1<<20))
	}
	before := readDevice(t, path, v.Size)
	must(p.CreateSnapshot(ctx, "s2", v.LV))(t)
	waitTrimmed(t, p)
	waitIdle(t, p)
	if s := must(p.latest())(t).VG.LV("s1").Size(); s != 3 { // extents of 4 MiB
		t.Errorf("the frozen store has %d extents, want 3", s)
	}
	if n := len(settledTo(t, p, 4)); n != 4 {
		t.Errorf("the devices are %v, want four", devicesOf(t, p))
	}
	writeDevice(t, path, 0, make([]byte, 4<<20))
	for name, want := range map[string][]byte{"s1": make([]byte, v.Size), "s2": before} {
		r := must(p.CreateVolume(ctx, VolumeSpec{Name: "r" + name, Mode: Block, Source: Source{Kind: FromSnapshot, LV: name}}))(t)
		if got := readDevice(t, must(p.Activate(ctx, r.LV))(t), v.Size); !bytes.Equal(got, want) {
			t.Errorf("%s has other content", name)
		}
		ok(t, p.Deactivate(ctx, r.LV))
	}
	ok(t, p.Deactivate(ctx, v.LV))
}
