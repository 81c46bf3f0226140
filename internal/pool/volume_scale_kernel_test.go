//go:build kernel

package pool

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// fillGroup fills the group of p up to n logical volumes, by edits alone: volumes with four
// layers each, one of them live.
func fillGroup(t *testing.T, p *Pool, n int) {
	t.Helper()
	const step = 1000
	for from := 0; from < n; from += step {
		ok(t, p.do(context.Background(), &change{what: "fill", edit: func(e *edit) error {
			for i := from; i < min(n, from+step); i += 6 {
				name := fmt.Sprintf("pvc-0d1c5f9e-0000-4b1e-9d60-%012d", i)
				volume, err := p.newVolume(e, VolumeSpec{Name: name, Size: 4 * size.MiB, Mode: Filesystem, FSType: "ext4"}, catalog.AnyKind, 8, 0)
				if err != nil {
					return err
				}
				if err := e.Put(volume); err != nil {
					return err
				}
				for k := range 4 {
					o := &catalog.Volume{LV: volume}
					for j := range k {
						o.Layers = append(o.Layers, &catalog.Layer{Order: uint64(j + 1), Through: uint64(j + 1), Snap: volume})
					}
					snapshot := fmt.Sprintf("snapshot-%d-%012d", k, i)
					lv := e.NewLayer("snap-"+snapshot, o, 32)
					ranges, err := e.AllocateOn(catalog.AnyKind, 1, catalog.HighEnd)
					if err != nil {
						return err
					}
					lv.Segments = catalog.AppendExtents(nil, ranges...)
					if err := e.Put(lv); err != nil {
						return err
					}
					if err := e.Record(catalog.CutLayer{Layer: lv.ID, At: time.Now()}, snapshot); err != nil {
						return err
					}
					if k == 3 {
						err = e.Join(o, lv, 4*size.MiB, 32)
					} else {
						frozen := e.VG.LVByID(lv.ID).Clone()
						frozen.Status = []string{lvm2.StatusRead, lvm2.StatusVisible}
						frozen.Tags = append(frozen.Tags, "dmsnap:used=64", "dmsnap:exact")
						catalog.HandOff(frozen)
						err = e.Put(frozen)
					}
					if err != nil {
						return err
					}
				}
			}
			return nil
		}}))
	}
	v := p.current.Load()
	if len(v.Strange) > 0 {
		t.Fatal(v.Strange)
	}
	t.Logf("%d logical volumes, %v of text", len(v.VG.LVs), v.VG.TextSize())
}

// flushes returns how often the disk at path was flushed.
func flushes(t *testing.T, path string) int {
	text, err := os.ReadFile("/sys/class/block/" + strings.TrimPrefix(path, "/dev/") + "/stat")
	ok(t, err)
	n, err := strconv.Atoi(strings.Fields(string(text))[15])
	ok(t, err)
	return n
}

// TestScale_create: one caller and 64 callers create and delete volumes in a pool that has as
// many others as a quarter of the disk holds; with DMSNAP_DISKS=64G, 10,000. It logs the rates.
func TestScale_create(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.NoFolding, c.ExtentSize = true, 512*size.KiB })
	fillGroup(t, p, int(min(must(p.Capacity(ctx))(t).Free/(4*size.MiB), 10_000)))
	for _, callers := range []int{1, 64} {
		each := 60
		if callers > 1 {
			each = 8
		}
		measure := func(what string, f func(name string) error) {
			var mu sync.Mutex
			var all []time.Duration
			var group sync.WaitGroup
			var failed atomic.Pointer[error]
			before, seqno, began := flushes(t, p.config.Devices[0]), p.current.Load().VG.Seqno, time.Now()
			for c := range callers {
				group.Go(func() {
					for i := range each {
						start := time.Now()
						if err := f(fmt.Sprintf("v-%d-%d-%d", callers, c, i)); err != nil {
							failed.Store(&err)
						}
						mu.Lock()
						all = append(all, time.Since(start))
						mu.Unlock()
					}
				})
			}
			group.Wait()
			took := time.Since(began)
			if err := failed.Load(); err != nil {
				t.Fatal(*err)
			}
			slices.Sort(all)
			t.Logf("%s, %d callers: %.0f/s, median %v, p99 %v, %d commits, %d flushes", what, callers, float64(len(all))/took.Seconds(),
				all[len(all)/2].Round(10*time.Microsecond), all[len(all)*99/100].Round(10*time.Microsecond), p.current.Load().VG.Seqno-seqno, flushes(t, p.config.Devices[0])-before)
		}
		measure("create", func(name string) error {
			_, err := p.CreateVolume(ctx, VolumeSpec{Name: name, Size: size.MiB, Mode: Filesystem, FSType: "ext4"})
			return err
		})
		measure("delete", func(name string) error { return p.DeleteVolume(ctx, name) })
		waitIdle(t, p)
	}
}
