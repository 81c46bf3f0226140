//go:build kernel

package pool

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// stall makes reads of n sectors from at take a minute, or until fail is called.
func (d *badDisk) stall(at, n size.Sectors) {
	d.t.Helper()
	under := dm.Area{Device: d.under, Offset: at + hidden}
	d.put(at, n, dm.Unknown{Name: "delay", Args: fmt.Sprintf("%v 60000 %[1]v 0 %[1]v 0", under)})
}

// TestHydrator_oneForkFails hydrates forks beside a fork that cannot be copied, or
// whose disk does not answer.
func TestHydrator_oneForkFails(t *testing.T) {
	ctx := context.Background()
	for _, how := range []string{"fails", "stalls"} {
		t.Run(how, func(t *testing.T) {
			disk := newBadDisk(t, testDisks(t)[0])
			p := testPool(t, func(c *Config) { c.Devices = []string{disk.path} })
			t.Cleanup(func() { disk.fail(0, 0) })
			r := rand.New(rand.NewPCG(6, 7))
			base, _ := snapped(t, p, r, "bad", 16*size.MiB)
			v := must(p.latest())(t)
			if at := sectorOf(v, v.VG.LV(base.LV), 4096); how == "fails" {
				disk.fail(at, 8)
			} else {
				disk.stall(at, 4096)
			}
			bad := restored(t, p, "bad")
			for end := time.Now().Add(10 * time.Second); p.hydrator.failure(bad.LV) == nil; time.Sleep(10 * time.Millisecond) {
				if how == "stalls" && p.hydrator.window(must(p.latest())(t).VolumeByLV(bad.LV).LV.ID) != nil {
					break
				}
				if time.Now().After(end) {
					t.Fatal("nothing is copied")
				}
			}
			_, model := snapped(t, p, r, "good", 16*size.MiB)
			good := restored(t, p, "good")
			waitHydrated(t, p, good.LV)
			if o := must(p.latest())(t).VolumeByLV(bad.LV); !o.Forked() {
				t.Error("the failing fork is hydrated too")
			}
			model.compare(t, must(p.Activate(ctx, good.LV))(t), "the one that is hydrated")
			ok(t, p.Deactivate(ctx, good.LV))
		})
	}
}
