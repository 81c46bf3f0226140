//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// usedDisks makes both groups on disks that are full of a former owner's bytes,
// with the given extent sizes.
func usedDisks(t *testing.T, extents ...string) func(from, to *Config) {
	return func(from, to *Config) {
		for i, c := range []*Config{from, to} {
			garbage := bytes.Repeat([]byte("a former owner's"), int(4*size.MiB)/16)
			for at := int64(0); at < int64(64*size.MiB); at += int64(4 * size.MiB) {
				writeDevice(t, c.Devices[0], at, garbage)
			}
			lvm(t, "vgcreate", "-qq", "-s", extents[i], c.VolumeGroup, c.Devices[0])
			c.Create, c.Clean = false, CleanNever
		}
	}
}

// TestCopyVolume_sourceGrows copies the lent content, even if the source grows
// before the copy is committed, and never shows a former owner's bytes.
func TestCopyVolume_sourceGrows(t *testing.T) {
	_, open := twoPools(t, usedDisks(t, "1m", "1m"))
	from, to := open()
	ctx, r := t.Context(), rand.New(rand.NewPCG(11, 12))
	v, model := snapped(t, from, r, "base", 8*size.MiB)
	ok(t, from.DeleteSnapshot(ctx, "snapbase"))
	release := must(from.keys.lock(ctx, lvKey(v.LV)))(t)
	done := make(chan error, 1)
	var c Volume
	go func() {
		var err error
		c, err = to.CopyVolume(ctx, VolumeSpec{Name: "clone", Mode: Block, Source: Source{Kind: FromVolume, LV: v.LV}, SourcePool: "from"}, from)
		done <- err
	}()
	time.Sleep(300 * time.Millisecond) // by then the copy waits for the source, and is committed only after the source has grown
	grown := make(chan struct{})
	go to.do(ctx, &change{what: "wait", edit: func(*edit) error { <-grown; return nil }})
	release()
	for end := time.Now().Add(10 * time.Second); must(from.latest())(t).Named.Get(loanName("to", "clone")) == nil && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	_, err := from.ExpandVolume(ctx, v.LV, 12*size.MiB, 0)
	close(grown)
	ok(t, err)
	ok(t, <-done)
	same(t, to, c, model)
}

// TestCopyVolume_loanGone begins the copy again after the loan is gone, with the
// source's new size.
func TestCopyVolume_loanGone(t *testing.T) {
	_, open := twoPools(t, func(from, to *Config) {
		usedDisks(t, "1m", "1m")(from, to)
		to.HydrationRate = size.MiB
	})
	from, to := open()
	ctx, r := t.Context(), rand.New(rand.NewPCG(13, 14))
	v, model := snapped(t, from, r, "base", 8*size.MiB)
	spec := VolumeSpec{Name: "clone", Mode: Block, Size: 10 * size.MiB, Source: Source{Kind: FromVolume, LV: v.LV}, SourcePool: "from"}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	_, err := to.CopyVolume(short, spec, from)
	cancel()
	var pending *PendingError
	if !errors.As(err, &pending) {
		t.Fatal(err)
	}
	if _, err := to.Activate(ctx, "clone"); !errors.Is(err, ErrPrecondition) {
		t.Errorf("using an incomplete volume: %v", err)
	}
	o := must(to.latest())(t).Named.Get("clone")
	if info := must(to.find(must(to.latest())(t).topDevice(o.LV)))(t); info != nil || len(o.Unknown) == 0 {
		t.Errorf("an incomplete volume has a device, or was wiped: %v", o.Unknown)
	}
	from, to = open()
	must(from.ExpandVolume(ctx, v.LV, 12*size.MiB, 0))(t)
	ok(t, from.DeleteVolume(ctx, must(from.latest())(t).Named.Get(loanName("to", "clone")).LV.Name))
	spec.Size = 0
	to.config.HydrationRate = 0
	same(t, to, copied(t, to, spec, from), append(model, make(content, 4*size.MiB)...))
}

// TestCopyVolume_unwipedHead copies a file system to larger extents, which join its
// first blocks to blocks that were never wiped. The copy is usable, but not as a
// block device.
func TestCopyVolume_unwipedHead(t *testing.T) {
	_, open := twoPools(t, usedDisks(t, "1m", "4m"))
	from, to := open()
	ctx := t.Context()
	for name, length := range map[string]size.Bytes{"one": 4 * size.MiB, "two": 8 * size.MiB} {
		v := must(from.CreateVolume(ctx, VolumeSpec{Name: name, Mode: Filesystem, FSType: "ext4", Size: length}))(t)
		must(from.Activate(ctx, v.LV))(t)
		ok(t, from.SetFormatted(ctx, v.LV))
		spec := VolumeSpec{Name: name, Mode: Filesystem, FSType: "ext4", Source: Source{Kind: FromVolume, LV: v.LV}, SourcePool: "from"}
		if name == "one" {
			if _, err := to.CopyVolume(ctx, spec, from); !errors.Is(err, ErrPrecondition) {
				t.Errorf("a copy of a single extent: %v", err)
			}
			continue
		}
		c := copied(t, to, spec, from)
		if _, err := to.Activate(ctx, c.LV); err != nil {
			t.Errorf("the copy cannot be used: %v", err)
		}
		if c.AsBlock() {
			t.Error("the copy counts as wiped")
		}
		ok(t, to.Deactivate(ctx, c.LV))
		ok(t, from.Deactivate(ctx, v.LV))
	}
}

// TestCopyVolume_sourceLost refuses the copy if the source's pool has no room for
// the blocks overwritten during the copy: the copy would have later content.
func TestCopyVolume_sourceLost(t *testing.T) {
	_, open := twoPools(t, func(from, to *Config) {
		from.NoReserve, from.FirstStore, to.HydrationRate = true, size.MiB, 4*size.MiB
	})
	from, to := open()
	ctx := t.Context()
	v := must(from.CreateVolume(ctx, VolumeSpec{Name: "base", Mode: Block, Size: 32 * size.MiB}))(t)
	at := must(from.Activate(ctx, v.LV))(t)
	room := must(from.Capacity(ctx))(t).MaxVolume
	must(from.CreateVolume(ctx, VolumeSpec{Name: "fills", Mode: Block, Size: room - 8*size.MiB}))(t)
	spec := VolumeSpec{Name: "clone", Mode: Block, Source: Source{Kind: FromVolume, LV: v.LV}, SourcePool: "from"}
	short, cancel := context.WithTimeout(ctx, 2*time.Second)
	_, err := to.CopyVolume(short, spec, from)
	cancel()
	var pending *PendingError
	if !errors.As(err, &pending) {
		t.Fatal(err)
	}
	writeDevice(t, at, int64(16*size.MiB), bytes.Repeat([]byte("what came later "), int(size.MiB)))
	if _, err = to.CopyVolume(ctx, spec, from); errors.Is(err, unix.EIO) { // unless the copy met the error before this call joined it
		_, err = to.CopyVolume(ctx, spec, from)
	}
	if !errors.Is(err, ErrLost) {
		t.Fatalf("copying lost content: %v, want %v", err, ErrLost)
	}
	if left := must(to.latest())(t); left.Named.Get("clone") != nil {
		t.Error("a volume that can never be complete is left")
	}
}
