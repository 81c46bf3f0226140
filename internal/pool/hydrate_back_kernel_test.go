//go:build kernel

package pool

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestHydrator_committedWindow commits a window, and writes the volume past it. The
// volume never returns to the window, whether or not the window's device still
// exists.
func TestHydrator_committedWindow(t *testing.T) {
	ctx := context.Background()
	for _, gone := range []bool{false, true} {
		t.Run(map[bool]string{false: "its device stays", true: "its device is gone"}[gone], func(t *testing.T) {
			p := testPool(t, func(c *Config) { c.HydrationRate = 8 * size.MiB })
			r := rand.New(rand.NewPCG(15, 16))
			_, model := snapped(t, p, r, "base", 32*size.MiB)
			f := restored(t, p, "base")
			at := must(p.Activate(ctx, f.LV))(t)
			again := p.hydrator.stop(f.LV)
			h, s := p.hydrator, &search{}
			w := must(h.open(ctx, f.LV, s, size.MiB.Sectors()))(t)
			ok(t, h.await(ctx, f.LV, w, func() {}))
			ok(t, h.commit(ctx, f.LV, w))
			v := must(p.latest())(t)
			o := v.VolumeByLV(f.LV)
			d := must(p.found(v.device(o.LV, w.layer, udevReal)))(t)
			file := must(os.Open(must(p.dm.EnsureNode(ctx, d.Name, d.Device))(t)))(t)
			write := func(x byte) {
				data := bytes.Repeat([]byte{x}, 4096)
				writeDevice(t, at, int64(w.Start.Bytes()), data)
				copy(model[w.Start.Bytes():], data)
			}
			write('a')
			must(h.open(ctx, f.LV, s, size.MiB.Sectors()))(t)
			write('b')
			back := func(w *window) {
				h.setWindow(o.LV.ID, w)
				ok(t, h.exclusive(ctx, f.LV, &change{what: "test", act: func(ctx context.Context, v *view) error { return p.converge(ctx, v, f.LV) }}))
			}
			if gone {
				ok(t, file.Close())
				back(nil)
			}
			// Like after a failure of the next window.
			back(w)
			time.Sleep(100 * time.Millisecond) // time in which a mirror would copy
			model.compare(t, at, "the fork")
			write('c')
			if !gone {
				ok(t, file.Close())
			}
			again()
			waitHydrated(t, p, f.LV)
			model.compare(t, at, "the volume, hydrated")
		})
	}
}
