//go:build kernel

package pool

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// hidden is the offset of a bad disk on the good disk, so that LVM2 does not find
// the disk twice.
const hidden = size.Sectors(8192)

// badDisk is a disk on which some sectors can be made to fail.
type badDisk struct {
	t      *testing.T
	client *dm.Client
	under  dm.Device
	length size.Sectors
	path   string
}

func newBadDisk(t *testing.T, disk string) *badDisk {
	t.Helper()
	d := &badDisk{t: t, client: must(dm.Open())(t), under: must(dm.DeviceOf(disk))(t), length: 2000000}
	t.Cleanup(func() { d.client.Close() })
	info := must(d.client.Create("baddisk", ""))(t)
	t.Cleanup(func() { lvm(t, "dmsetup", "remove", "--retry", "baddisk") })
	d.fail(0, 0)
	d.path = must(d.client.EnsureNode(context.Background(), "baddisk", info.Device))(t)
	return d
}

// fail makes exactly n sectors from at fail.
func (d *badDisk) fail(at, n size.Sectors) {
	d.t.Helper()
	d.put(at, n, dm.ErrorTarget{})
}

// put maps n sectors from at to another target.
func (d *badDisk) put(at, n size.Sectors, target dm.Target) {
	d.t.Helper()
	good := func(from, to size.Sectors) dm.Segment {
		return dm.Segment{Start: from, Length: to - from, Target: dm.Linear{Device: d.under, Offset: from + hidden}}
	}
	table := dm.Table{good(0, d.length)}
	if n > 0 {
		table = dm.Table{good(0, at), {Start: at, Length: n, Target: target}, good(at+n, d.length)}
	}
	ok(d.t, d.client.Load("baddisk", table, false))
	ok(d.t, d.client.Resume("baddisk", 0))
}

// sectorOf returns the disk's sector of a logical volume's sector.
func sectorOf(v *view, lv *lvm2.LV, at size.Sectors) size.Sectors {
	for _, s := range lv.Segments {
		if start := sectors(v, s.Start); at >= start && at < start+sectors(v, s.Count) {
			return v.VG.PVs[s.Stripes[0].PV].PEStart + sectors(v, s.Stripes[0].Start) + at - start
		}
	}
	return 0
}

// TestHydrator_failingDisk never marks blocks as copied that cannot be read or
// written. The volume stays usable, people are told, and hydration finishes when
// the disk works again.
func TestHydrator_failingDisk(t *testing.T) {
	ctx := context.Background()
	const bad = 40 << 20 // of the volume, in bytes
	for _, failing := range []string{"source", "target"} {
		t.Run(failing, func(t *testing.T) {
			disk := newBadDisk(t, testDisks(t)[0])
			p := testPool(t, func(c *Config) { c.Devices, c.HydrationRate = []string{disk.path}, 16*size.MiB })
			r := rand.New(rand.NewPCG(5, 6))
			base := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: Block}))(t)
			path := must(p.Activate(ctx, base.LV))(t)
			model := make(content, base.Size)
			model.scribble(t, r, path, 300)
			must(p.CreateSnapshot(ctx, "snap1", base.LV))(t)
			ok(t, p.Deactivate(ctx, base.LV))
			f := must(p.CreateVolume(ctx, VolumeSpec{Name: "fork", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snap1"}}))(t)
			v := must(p.latest())(t)
			lv := v.VG.LV(base.LV)
			if failing == "target" {
				lv = v.VG.LV(f.LV)
			}
			disk.fail(sectorOf(v, lv, size.Bytes(bad).Sectors()), 8)
			at := must(p.Activate(ctx, f.LV))(t)
			before := model[:bad-1<<20]
			for end := time.Now().Add(30 * time.Second); p.hydrator.failure(f.LV) == nil; time.Sleep(10 * time.Millisecond) {
				before.scribble(t, r, at, 2)
				if time.Now().After(end) {
					t.Fatal("nothing failed")
				}
			}
			if told := must(p.Health(ctx, f.LV))(t); !slices.ContainsFunc(told, func(c Condition) bool { return c.Reason == "HydrationFailing" }) {
				t.Errorf("the volume's health: %v", told)
			}
			behind := model[bad+1<<20:]
			var o *catalog.Volume
			for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				before.scribble(t, r, at, 2)
				behind.scribbleAt(t, r, at, len(model)-len(behind), 2)
				if o = must(p.latest())(t).VolumeByLV(f.LV); o.Hydrated.To.Bytes() == v.BytesOf(lv) {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("hydrated: %v", o.Hydrated)
				}
			}
			if left := o.Hydrated.Left; len(left) != 1 || left.Size() > leastWindow || !left.Contains(catalog.Span{Start: size.Bytes(bad).Sectors(), Length: 8}) {
				t.Errorf("left are %v", left)
			}
			noFindings(t, p)
			ok(t, p.Deactivate(ctx, f.LV))
			config := p.config
			ok(t, p.Close())
			p = openPool(t, config)
			at = must(p.Activate(ctx, f.LV))(t)
			// The driver retries immediately, and once more. Sound neighbours can
			// be read all the time.
			before, behind = model[:bad-16<<10], model[bad+16<<10:]
			for end := time.Now().Add(hydrateRetry + time.Second); time.Now().Before(end); {
				near := size.MiB
				before[len(before)-int(near):].compareAt(t, at, len(before)-int(near), "what lies just before the bad sector")
				behind[:near].compareAt(t, at, len(model)-len(behind), "the blocks directly after the bad sector")
			}
			before.compare(t, at, "what lies before the bad sector")
			behind.compareAt(t, at, len(model)-len(behind), "the blocks after the bad sector")
			if told := must(p.Health(ctx, f.LV))(t); !slices.ContainsFunc(told, func(c Condition) bool { return c.Reason == "HydrationFailing" }) {
				t.Errorf("the volume's health, in a new process: %v", told)
			}
			disk.fail(0, 0)
			waitHydrated(t, p, f.LV)
			model.compare(t, at, "the volume, hydrated")
			ok(t, p.Deactivate(ctx, f.LV))
		})
	}
}

// TestHydrator_failureAfterCommit fails the step after a window's commit. Writes to
// that window since then are in the volume's own blocks.
func TestHydrator_failureAfterCommit(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.HydrationRate = 4 * size.MiB })
	r := rand.New(rand.NewPCG(8, 9))
	base := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 32 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, base.LV))(t)
	model := make(content, base.Size)
	model.scribble(t, r, path, 100)
	must(p.CreateSnapshot(ctx, "snap1", base.LV))(t)
	f := must(p.CreateVolume(ctx, VolumeSpec{Name: "fork", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "snap1"}}))(t)
	at := must(p.Activate(ctx, f.LV))(t)
	for failed := 0; failed < 3; {
		o := must(p.latest())(t).VolumeByLV(f.LV)
		if !o.Forked() {
			break
		}
		model.scribble(t, r, at, 5)
		if w := p.hydrator.window(o.LV.ID); w == nil || !o.Hydrated.Has(w.Span) {
			continue
		}
		ok(t, p.hydrator.abandon(f.LV)) // like a failing open
		model.compare(t, at, "the volume, after a step failed")
		failed++
	}
	waitHydrated(t, p, f.LV)
	model.compare(t, at, "the volume, hydrated")
	ok(t, p.Deactivate(ctx, f.LV))
	ok(t, p.Deactivate(ctx, base.LV))
}
