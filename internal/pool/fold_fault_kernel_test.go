//go:build kernel

package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// steps returns the steps of a fold, so that tests can stop after each.
func (f *fold) steps() []func() error {
	ctx := context.Background()
	return []func() error{
		func() error { return f.count(ctx) },
		func() error { return f.begin(ctx) },
		func() error { // copies half of the chunks
			some := 0
			err := f.copy(ctx, func(context.Context) error {
				if some++; some > 1 {
					return errHalf
				}
				return nil
			})
			if errors.Is(err, errHalf) {
				err = nil
			}
			return err
		},
		func() error { return f.copy(ctx, f.giveWay) },
		func() error { return f.exclusive(ctx, f.commit) },
	}
}

var errHalf = errors.New("half of a fold")

// TestFold_interrupted stops a fold after every step, by the death of the process
// or of the machine. The next process continues from there.
func TestFold_interrupted(t *testing.T) {
	ctx := context.Background()
	const steps = 5
	for _, machine := range []bool{false, true} {
		t.Run(fmt.Sprintf("machine-%v", machine), func(t *testing.T) {
			h := newPast(t, 16*size.MiB)
			h.write(50)
			h.cut("oldest", 16*size.KiB)
			for step := range steps {
				heir, gone, last := fmt.Sprintf("heir%d", step), fmt.Sprintf("gone%d", step), fmt.Sprintf("last%d", step)
				h.write(120)
				h.cut(heir, 16*size.KiB)
				h.fold() // folds the last step's newest layer, which this cut froze
				h.write(120)
				h.cut(gone, 4*size.KiB)
				h.write(120)
				h.cut(last, 16*size.KiB)
				h.write(120)
				h.remove(gone)
				f := newFold(h.p, h.pair())
				var reader *os.File
				for i, do := range f.steps()[:step+1] {
					ok(t, do())
					if !machine && step%2 == 0 && i == 2 { // read an older snapshot, in the middle of the fold
						reader = openSnapshot(t, h.p, "oldest")
					}
					if i < 4 && h.path != "" {
						h.write(5)
					}
				}
				if f.file != nil {
					f.file.Close()
				}
				h.p.folder.running.Store(nil)
				ok(t, h.p.Close())
				h.write(30) // nobody repairs the devices
				if machine {
					removeAll(t, h.p)
				}
				h.p = openPool(t, h.p.config)
				if machine {
					h.activate()
				}
				h.write(30)
				h.check(fmt.Sprintf("after step %d", step))
				if reader != nil {
					reader.Close()
					h.check(fmt.Sprintf("closed after step %d", step))
				}
				h.idle(fmt.Sprintf("after step %d", step))
				h.fold()
				h.check(fmt.Sprintf("folded after step %d", step))
				h.idle(fmt.Sprintf("folded after step %d", step))
				h.remove(heir)
				h.fold()
				h.remove(last)
				waitIdle(t, h.p)
			}
			h.check("at the end")
			ok(t, h.p.Deactivate(ctx, h.lv))
		})
	}
}

// TestFold_liveLayerLost loses the live layer during a fold. The heir is unchanged
// and lost, because it read through the live layer.
func TestFold_liveLayerLost(t *testing.T) {
	ctx := context.Background()
	h := newPast(t, 64*size.MiB)
	h.cut("s1", 16*size.KiB)
	h.write(100)
	h.cut("s2", 4*size.KiB) // the rest of the heir's chunks is read through the live layer
	h.write(400)
	h.p.config.FirstStore = 8 * size.MiB // less than the volume gets
	h.cut("s3", 16*size.KiB)
	h.remove("s2")
	f := newFold(h.p, h.pair())
	for _, do := range f.steps()[:3] {
		ok(t, do())
	}
	inTime := late(t, h.p, h.lv)
	overrun(t, h.path)
	if err := f.copy(ctx, f.giveWay); !errors.Is(err, unix.EIO) && !errors.Is(err, errFoldOver) {
		t.Errorf("the fold continued: %v", err)
	}
	if err := f.exclusive(ctx, f.commit); err == nil {
		t.Error("a fold through a lost layer is committed")
	}
	ok(t, f.end())
	inTime()
	for end := time.Now().Add(10 * time.Second); !must(h.p.Snapshot(ctx, "s1"))(t).Lost; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the loss is not recorded")
		}
	}
	v := must(h.p.latest())(t)
	if len(v.VolumeByLV(h.lv).Layers) != 3 || len(v.FoldPairs()) != 0 {
		t.Errorf("%d layers, to be folded: %v", len(v.VolumeByLV(h.lv).Layers), v.FoldPairs())
	}
	h.deactivate()
}
