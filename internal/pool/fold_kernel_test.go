//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestFold_everyPlace folds layers at all places of a history, with different
// chunks and after expansions, in an active and an inactive volume. The newest
// layer is folded after the next cut.
func TestFold_everyPlace(t *testing.T) {
	for _, active := range []bool{true, false} {
		t.Run(map[bool]string{true: "active", false: "inactive"}[active], func(t *testing.T) {
			h := newPast(t, 16*size.MiB)
			chunks := []size.Bytes{16 * size.KiB, 4 * size.KiB, 64 * size.KiB, 16 * size.KiB, 512 * size.KiB, 4 * size.KiB}
			for i := range 9 {
				h.write(60)
				h.cut(fmt.Sprintf("s%d", i), chunks[i%len(chunks)])
				if i%4 == 2 {
					h.grow(4 * size.MiB)
				}
			}
			h.write(100)
			if !active {
				h.deactivate()
			}
			before := must(h.p.latest())(t).Free.Size()
			for _, c := range []struct {
				names []string
				folds int
			}{{[]string{"s1"}, 1}, {[]string{"s5", "s4"}, 2}, {[]string{"s8"}, 0}, {[]string{"s2", "s7"}, 2}, {[]string{"s3"}, 1}} {
				names := c.names
				h.remove(names...)
				if n := h.fold(); n != c.folds {
					v := must(h.p.latest())(t)
					t.Errorf("deleted %v, %d folds, want %d; parts of flat stores: %v, pinned: %v, not understood: %v", names, n, c.folds, v.Flattened, v.Pinned, v.Unclear)
				}
				h.check(fmt.Sprintf("after %v", names))
				h.idle(fmt.Sprintf("after %v", names))
				if active {
					h.write(30)
					h.check(fmt.Sprintf("written after %v", names))
				}
			}
			waitTrimmed(t, h.p)
			waitIdle(t, h.p)
			v := must(h.p.latest())(t)
			if n := len(v.VolumeByLV(h.lv).Layers); n != 3 { // the layer of s8 is live
				t.Errorf("%d layers are left", n)
			}
			if v.Free.Size() <= before {
				t.Errorf("%d extents were free, now %d", before, v.Free.Size())
			}
			h.cut("s9", 16*size.KiB)
			if n := h.fold(); n != 1 {
				t.Errorf("after another cut %d folds", n)
			}
			h.check("folded after another cut")
			if !active {
				h.activate()
			}
			h.write(30)
			h.check("after another cut")
			h.remove("s0", "s6", "s9")
			waitIdle(t, h.p)
			if n := len(must(h.p.latest())(t).VolumeByLV(h.lv).Layers); n != 0 { // an unneeded newest layer is discarded immediately
				t.Errorf("%d layers are left without a snapshot", n)
			}
			h.check("without a snapshot")
			h.deactivate()
		})
	}
}

// TestFold_emptyLayers folds layers into which nothing was copied: their stores
// have only the header from the next cut.
func TestFold_emptyLayers(t *testing.T) {
	h := newPast(t, 16*size.MiB)
	h.write(20)
	h.deactivate()
	h.cut("heir", 16*size.KiB)
	h.cut("gone", 16*size.KiB)
	h.cut("last", 16*size.KiB)
	h.remove("gone")
	if n := h.fold(); n != 1 {
		t.Errorf("%d folds", n)
	}
	h.idle("after the fold")
	h.activate()
	h.write(30)
	h.check("after the fold")
	h.deactivate()
}

// TestFold_underLoad folds layers while the volume is written to, cut and restored
// from.
func TestFold_underLoad(t *testing.T) {
	ctx := context.Background()
	h := newPast(t, 32*size.MiB)
	h.write(50)
	h.cut("oldest", 16*size.KiB)
	oldest := h.want["oldest"]
	for i := range 4 {
		heir, gone := fmt.Sprintf("heir%d", i), fmt.Sprintf("gone%d", i)
		h.write(200)
		h.cut(heir, 16*size.KiB)
		h.write(400)
		h.cut(gone, 4*size.KiB)
		h.write(400)
		h.cut(fmt.Sprintf("last%d", i), 16*size.KiB)
		h.write(100)
		h.remove(gone)
		waitTrimmed(t, h.p)
		var writer, restorer sync.WaitGroup
		stop := make(chan struct{})
		var mu sync.Mutex // guards the content
		writer.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				mu.Lock()
				h.write(1)
				mu.Unlock()
				time.Sleep(time.Millisecond)
			}
		})
		var restored error
		restorer.Go(func() {
			name := fmt.Sprintf("r%d", i)
			if _, restored = h.p.CreateVolume(ctx, VolumeSpec{Name: name, Mode: Block, Source: Source{Kind: FromSnapshot, LV: "oldest"}}); restored != nil {
				return
			}
			if i%2 == 1 {
				mu.Lock()
				defer mu.Unlock()
				h.cut(fmt.Sprintf("meanwhile%d", i), 16*size.KiB)
			}
		})
		for _, pair := range must(h.p.latest())(t).FoldPairs() {
			f := newFold(h.p, pair)
			ok(t, f.count(ctx))
			if err := f.run(ctx); err != nil && !errors.Is(err, errFoldOver) {
				t.Errorf("folding: %v", err)
			} else {
				t.Logf("fold %d: %v", i, err)
			}
		}
		restorer.Wait()
		close(stop)
		writer.Wait()
		ok(t, restored)
		r := fmt.Sprintf("r%d", i)
		if got := readDevice(t, must(h.p.Activate(ctx, r))(t), size.Bytes(len(oldest))); !bytes.Equal(got, oldest) {
			t.Fatalf("%s has wrong bytes", r)
		}
		ok(t, h.p.Deactivate(ctx, r))
		ok(t, h.p.DeleteVolume(ctx, r))
		h.fold()
		h.check(fmt.Sprintf("after round %d", i))
		h.idle(fmt.Sprintf("after round %d", i))
	}
	h.deactivate()
}

// TestFolder_worthwhileFolds expects the folder to make exactly the folds that are
// worth it.
func TestFolder_worthwhileFolds(t *testing.T) {
	ctx := context.Background()
	h := newPast(t, 64*size.MiB)
	h.cut("s1", 16*size.KiB)
	for i := range int64(24) { // the same 24 MiB in both layers
		writeDevice(t, h.path, i<<20, bytes.Repeat([]byte{byte(i + 1)}, 1<<20))
		copy(h.content[i<<20:], bytes.Repeat([]byte{byte(i + 1)}, 1<<20))
	}
	h.cut("s2", 16*size.KiB)
	for i := range int64(28) {
		writeDevice(t, h.path, i<<20, bytes.Repeat([]byte{byte(i + 100)}, 1<<20))
		copy(h.content[i<<20:], bytes.Repeat([]byte{byte(i + 100)}, 1<<20))
	}
	h.cut("s3", 16*size.KiB)
	for i := range int64(24) { // another 24 MiB only in this layer
		writeDevice(t, h.path, (i+40)<<20, bytes.Repeat([]byte{byte(i + 1)}, 1<<20))
		copy(h.content[(i+40)<<20:], bytes.Repeat([]byte{byte(i + 1)}, 1<<20))
	}
	h.cut("s4", 16*size.KiB)
	h.remove("s2", "s3")
	waitTrimmed(t, h.p)
	waitIdle(t, h.p)
	before := must(h.p.latest())(t).Free.Size()
	ok(t, h.p.Close())
	c := h.p.config
	c.NoFolding = false
	h.p = openPool(t, c)
	for end := time.Now().Add(40 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if v := must(h.p.latest())(t); len(v.VolumeByLV(h.lv).Layers) == 3 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing is folded")
		}
	}
	waitTrimmed(t, h.p)
	waitIdle(t, h.p)
	time.Sleep(3 * foldPause / 2)
	v := must(h.p.latest())(t)
	layers := v.VolumeByLV(h.lv).Layers
	if len(layers) != 3 || layers[1].Order != 3 || layers[0].Through != 2 {
		t.Errorf("layers are left: %d, the oldest reaches to %d", len(layers), layers[0].Through)
	}
	if freed := v.Free.Size() - before; freed < 5 {
		t.Errorf("only %d extents became free", freed)
	}
	h.check("after the fold")
	h.idle("after the fold")
	ok(t, h.p.Deactivate(ctx, h.lv))
}
