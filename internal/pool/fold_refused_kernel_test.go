//go:build kernel

package pool

import (
	"context"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestFold_commitRefused refuses the commit of a fold that has copied everything.
// The next cut comes before the fold's devices are in line again, while somebody
// reads an older snapshot.
func TestFold_commitRefused(t *testing.T) {
	for _, read := range []bool{false, true} {
		t.Run(map[bool]string{false: "idle", true: "read"}[read], func(t *testing.T) {
			ctx := context.Background()
			h := newPast(t, 16*size.MiB)
			h.write(50)
			h.cut("oldest", 16*size.KiB)
			h.write(100)
			h.cut("heir", 16*size.KiB)
			h.write(100)
			h.cut("gone", 4*size.KiB)
			h.write(100)
			h.cut("last", 16*size.KiB)
			h.write(100)
			h.remove("gone")
			f := newFold(h.p, h.pair())
			done := func() {}
			for i, do := range f.steps()[:4] {
				if read && i == 3 {
					r := openSnapshot(t, h.p, "oldest")
					done = func() { r.Close() }
				}
				ok(t, do())
			}
			h.write(50)
			h.cut("next", 16*size.KiB)
			h.write(50)
			if err := f.end(); err != nil {
				t.Logf("tried again: %v", err)
				ok(t, h.p.settleAgain(ctx, h.lv))
			}
			h.write(50)
			if read {
				if n := len(devicesOf(t, h.p)); n != 4+2*4 {
					t.Errorf("%d devices: %v", n, devicesOf(t, h.p))
				}
				h.check("read")
			}
			done()
			h.check("after the fold")
			h.idle("after the fold")
			h.deactivate()
		})
	}
}
