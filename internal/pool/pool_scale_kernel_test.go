//go:build kernel

package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestScale_foreignDevices: operations are measured beside many devices of other
// programs.
func TestScale_foreignDevices(t *testing.T) {
	const rounds = 9
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.NoFolding, c.FirstStore = true, 4*size.MiB })
	var order []string
	measure := func(foreign int) {
		order = nil
		all := map[string][]time.Duration{}
		timed := func(what string, f func()) {
			begin := time.Now()
			f()
			if all[what] == nil {
				order = append(order, what)
			}
			all[what] = append(all[what], time.Since(begin))
		}
		for i := range rounds {
			name := fmt.Sprintf("v-%d-%d", foreign, i)
			var v Volume
			var s Snapshot
			timed("CreateVolume", func() { v = must(p.CreateVolume(ctx, VolumeSpec{Name: name, Size: 16 * size.MiB, Mode: Block}))(t) })
			timed("Activate", func() { must(p.Activate(ctx, v.LV))(t) })
			timed("CreateSnapshot (first)", func() { must(p.CreateSnapshot(ctx, "former-"+name, v.LV))(t) })
			p.windows = timings{}
			timed("CreateSnapshot", func() { s = must(p.CreateSnapshot(ctx, "newer-"+name, v.LV))(t) })
			for _, w := range p.Windows() {
				what := "held: " + w.Part
				if all[what] == nil {
					order = append(order, what)
				}
				all[what] = append(all[what], w.Sum)
			}
			timed("DeleteSnapshot", func() { ok(t, p.DeleteSnapshot(ctx, s.LV)) })
			timed("Deactivate", func() { ok(t, p.Deactivate(ctx, v.LV)) })
			timed("DeleteVolume", func() { ok(t, p.DeleteVolume(ctx, v.LV)) })
			waitIdle(t, p)
		}
		for _, what := range order {
			slices.Sort(all[what])
			t.Logf("%5d foreign devices: %-24s %9v median, %9v worst", foreign, what, all[what][rounds/2].Round(time.Microsecond), all[what][rounds-1].Round(time.Microsecond))
		}
	}
	measure(0)
	n := 300
	if must(p.Capacity(ctx))(t).Free > 9*size.GiB { // only with DMSNAP_DISKS=10G, for measurements
		n = 3000
	}
	for i := range n {
		name := fmt.Sprintf("foreign--group-volume--%d", i)
		must(p.dm.Create(name, fmt.Sprintf("LVM-foreignforeignforeignforeignforeignforeignforeignforeign%06d", i)))(t)
		ok(t, p.dm.Load(name, whole(8192, dm.Zero{}), false))
		ok(t, p.dm.Resume(name, udevReal))
	}
	defer func() {
		for i := range n {
			ok(t, p.dm.Remove(fmt.Sprintf("foreign--group-volume--%d", i), udevReal))
		}
	}()
	begin := time.Now()
	must(p.dm.List())(t)
	t.Logf("listing the devices takes %v", time.Since(begin))
	begin = time.Now()
	must(p.mappingsBy(must(p.latest())(t), func(name string) (dm.Table, error) {
		if strings.HasPrefix(name, "foreign-") {
			t.Errorf("the table of %s is read, although it lies on no disk of the pool", name)
		}
		return p.dm.Table(name)
	}))(t)
	t.Logf("finding the mapped extents takes %v", time.Since(begin))
	measure(n)
}

// TestScale_open: the time to open a pool, and its operations, are measured with many
// volumes in use.
func TestScale_open(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.NoFolding, c.FirstStore = true, 4*size.MiB })
	n := 100
	if must(p.Capacity(ctx))(t).Free > 9*size.GiB { // only with DMSNAP_DISKS=10G, for measurements
		n = 1000
	}
	active := n / 2
	var lvs []string
	for i := range n {
		name := fmt.Sprintf("v-%d", i)
		v := must(p.CreateVolume(ctx, VolumeSpec{Name: name, Size: 4 * size.MiB, Mode: Block}))(t)
		if i%5 == 0 {
			must(p.CreateSnapshot(ctx, "s-"+name, v.LV))(t)
		}
		if i < active {
			must(p.Activate(ctx, v.LV))(t)
		}
		lvs = append(lvs, v.LV)
	}
	t.Logf("%d volumes, %d of them active", n, active)
	for range 2 {
		ok(t, p.Close())
		begin := time.Now()
		p = openPool(t, p.config)
		open := time.Since(begin)
		for _, lv := range lvs {
			must(p.keys.lock(ctx, lvKey(lv)))(t)()
		}
		t.Logf("open after %v, repaired after %v", open, time.Since(begin))
	}
	var all []time.Duration
	for i := range 9 {
		begin := time.Now()
		must(p.CreateSnapshot(ctx, fmt.Sprintf("more-%d", i), lvs[i]))(t)
		all = append(all, time.Since(begin))
	}
	slices.Sort(all)
	t.Logf("a cut takes %v", all[4])
	all = nil
	for i := range 9 {
		begin := time.Now()
		must(p.CreateVolume(ctx, VolumeSpec{Name: fmt.Sprintf("more-%d", i), Size: 4 * size.MiB, Mode: Block}))(t)
		all = append(all, time.Since(begin))
	}
	slices.Sort(all)
	t.Logf("CreateVolume takes %v", all[4])
	for _, lv := range lvs[:active] {
		ok(t, p.Deactivate(ctx, lv))
	}
}

// TestScale_snapshotsAtOnce: the rate at which many callers take snapshots of volumes that
// nobody uses is measured.
func TestScale_snapshotsAtOnce(t *testing.T) {
	const callers = 16
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.NoFolding, c.FirstStore = true, 4*size.MiB })
	n := 64
	if must(p.Capacity(ctx))(t).Free > 9*size.GiB { // only with DMSNAP_DISKS=10G, for measurements
		n = 500
	}
	atOnce := func(what string, do func(i int) error) {
		work, failed := make(chan int), make(chan error, callers)
		begin := time.Now()
		for range callers {
			go func() {
				var err error
				for i := range work {
					err = errors.Join(err, do(i))
				}
				failed <- err
			}()
		}
		for i := range n {
			work <- i
		}
		close(work)
		for range callers {
			ok(t, <-failed)
		}
		t.Logf("%s: %.0f per second", what, float64(n)/time.Since(begin).Seconds())
	}
	lvs := make([]string, n)
	atOnce("volumes", func(i int) error {
		v, err := p.CreateVolume(ctx, VolumeSpec{Name: fmt.Sprintf("v-%d", i), Size: 4 * size.MiB, Mode: Filesystem, FSType: "ext4"})
		lvs[i] = v.LV
		return err
	})
	for _, round := range []string{"first", "second"} {
		atOnce(round+" snapshots", func(i int) error {
			_, err := p.CreateSnapshot(ctx, fmt.Sprintf("%s-%d", round, i), lvs[i])
			return err
		})
	}
}
