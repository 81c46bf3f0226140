//go:build kernel

package pool

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// giveExceptions writes a list of the first n chunks into the live store of an inactive
// volume, as if they had been overwritten. The content of the copies is arbitrary.
func giveExceptions(t *testing.T, p *Pool, lv string, n uint64) {
	t.Helper()
	v := must(p.latest())(t)
	l := v.VolumeByLV(lv).Live()
	extents := must(catalog.Physical(l.LV))(t)
	f := must(os.OpenFile(v.VG.PVs[extents[0].PV].Device, os.O_RDWR|unix.O_DIRECT, 0))(t)
	defer f.Close()
	write := func(b []byte, at size.Bytes) {
		for _, r := range extents {
			length := size.Bytes(r.Count) * v.ExtentSize()
			if at < length {
				must(f.WriteAt(b, int64(v.VG.Offset(v.VG.PVs[r.PV], r.Start).Bytes()+at)))(t)
				return
			}
			at -= length
		}
		t.Fatalf("the store is too small for the list by %v", at)
	}
	chunk := l.Chunk.Bytes()
	perArea := uint64(chunk / 16)
	area := directBuffer(t, chunk)
	copy(area, cow.NewHeader(chunk))
	write(area, 0)
	for i := range n/perArea + 1 { // the last area ends the list
		clear(area)
		for k := range min(perArea, n-i*perArea) {
			binary.LittleEndian.PutUint64(area[16*k:], i*perArea+k)
			binary.LittleEndian.PutUint64(area[16*k+8:], 1+i*(perArea+1)+1+k)
		}
		write(area, size.Bytes(1+i*(perArea+1))*chunk)
	}
}

// TestWindow_length: the time for which a cut holds the volume is measured, with few
// and many exceptions in the former newest layer's store, with and without a reader.
func TestWindow_length(t *testing.T) {
	const cuts = 5
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.NoFolding, c.Chunk, c.FirstStore = true, 4*size.KiB, 4*size.MiB })
	counts := []uint64{0, 10_000, 40_000}
	if must(p.Capacity(ctx))(t).Free > 9*size.GiB { // only with DMSNAP_DISKS=10G, for measurements
		counts = []uint64{0, 100_000, 1_000_000}
	}
	for _, exceptions := range counts {
		for _, read := range []bool{false, true} {
			var all []time.Duration
			parts := map[string][]time.Duration{}
			for cut := range cuts {
				name := fmt.Sprintf("v-%d-%v-%d", exceptions, read, cut)
				length := max(16*size.MiB, size.Bytes(exceptions)*4*size.KiB)
				v := must(p.CreateVolume(ctx, VolumeSpec{Name: name, Size: length, Mode: Block}))(t)
				p.config.FirstStore = cow.LargestUseful(length, 4*size.KiB)
				first := must(p.CreateSnapshot(ctx, "former-"+name, v.LV))(t)
				giveExceptions(t, p, v.LV, exceptions)
				path := must(p.Activate(ctx, v.LV))(t)
				var reader *os.File
				if read {
					reader = must(os.Open(p.dm.Node(lvm2.DMName(p.vgName, first.LV, ""))))(t)
				}
				p.windows = timings{}
				p.config.FirstStore = 4 * size.MiB
				second := must(p.CreateSnapshot(ctx, "newer-"+name, v.LV))(t)
				for _, w := range p.Windows() {
					if w.Part == "" {
						all = append(all, w.Sum)
					} else {
						parts[w.Part] = append(parts[w.Part], w.Sum)
					}
				}
				writeDevice(t, path, 0, bytes.Repeat([]byte("x"), 8192))
				want := 4
				if read {
					want = 6
				}
				if n := len(settledTo(t, p, want)); n != want {
					t.Errorf("%s has %d devices, want %d", name, n, want)
				}
				if reader != nil {
					reader.Close()
				}
				ok(t, p.DeleteSnapshot(ctx, second.LV))
				ok(t, p.DeleteSnapshot(ctx, first.LV))
				ok(t, p.Deactivate(ctx, v.LV))
				ok(t, p.DeleteVolume(ctx, v.LV))
			}
			waitIdle(t, p)
			if len(all) != cuts {
				t.Fatalf("%d of %d windows were measured", len(all), cuts)
			}
			var shares []string
			for part, took := range parts {
				slices.Sort(took)
				shares = append(shares, fmt.Sprintf("%s %v", part, took[len(took)/2]))
			}
			slices.Sort(shares)
			slices.Sort(all)
			t.Logf("%7d exceptions, read %5v: %v (median; worst %v): %s", exceptions, read, all[len(all)/2], all[len(all)-1], strings.Join(shares, ", "))
		}
	}
}

// TestWindow_fails: if the context ends, or a step fails, while a volume is held still,
// the volume is resumed with its former table.
func TestWindow_fails(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 16 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	must(p.CreateSnapshot(ctx, "s", v.LV))(t)
	latest := must(p.latest())(t)
	vol, base := latest.topDevice(latest.VG.LV(v.LV)), latest.realDevice(latest.VG.LV(v.LV))
	real := must(p.find(base))(t)
	before := must(p.dm.Table(vol.name))(t)
	goesOn := func(what string) {
		t.Helper()
		info := must(p.find(vol))(t)
		if table := must(p.dm.Table(vol.name))(t); info.Suspended || info.Loaded || !table.Equal(before) {
			t.Errorf("%s: the device is %+v with the table %v", what, info, table)
		}
		writeDevice(t, path, 0, bytes.Repeat([]byte(what)[:1], 4096))
	}
	load := func(target dm.Target) { t.Helper(); ok(t, p.dm.Load(vol.name, whole(v.Size.Sectors(), target), false)) }

	c, o := p.convergence(latest, v.LV, demand{}), latest.VolumeByLV(v.LV)
	window := []step{
		{do: stepSuspend, device: vol, of: o},
		{do: stepLoad, device: base, of: o, table: disks(whole(v.Size.Sectors(), dm.Linear{Device: dm.Device{Major: 4000}}))},
		{do: stepResume, device: vol, of: o},
	}
	load(dm.Linear{Device: real.Device})
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := c.carryOut(ended, window, must(c.look())(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context, carryOut returned %v", err)
	}
	goesOn("late")

	load(dm.Linear{Device: real.Device})
	if err := c.carryOut(ctx, window, must(c.look())(t)); err == nil {
		t.Error("inside the window, a table on a device that does not exist was loaded")
	}
	goesOn("inside")

	ok(t, p.Deactivate(ctx, v.LV))
}
