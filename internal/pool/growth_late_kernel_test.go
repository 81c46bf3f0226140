//go:build kernel

package pool

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestLengthen_deviceBeingMade grows a store while its device is made with the
// table from before the growth. The device gets the new table, and stays read-only.
func TestLengthen_deviceBeingMade(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 64 * size.MiB, Mode: Block}))(t)
	must(p.CreateSnapshot(ctx, "s", v.LV))(t)
	before := must(p.latest())(t)
	l := before.SnapshotByLV("s")
	d, id := before.cowDevice(l.LV), l.LV.ID
	release := must(p.keys.lock(ctx, storeKey(id)))(t)
	grown := make(chan error, 1)
	go func() { grown <- p.growStore(ctx, &growth{storeID: id, more: 8 * size.MiB, must: true}) }()
	store := func() *lvm2.LV { return must(p.latest())(t).VG.LVByID(id) }
	for end := time.Now().Add(10 * time.Second); store().Size() == l.LV.Size(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not grow")
		}
	}
	time.Sleep(50 * time.Millisecond)
	must(p.dm.Create(d.name, d.uuid))(t)
	ok(t, p.dm.Load(d.name, must(before.linearTable(l.LV))(t), true))
	ok(t, p.dm.Resume(d.name, d.udev))
	release()
	ok(t, <-grown)
	table, want := must(p.dm.Table(d.name))(t), sectors(before, store().Size())
	if info := must(p.find(d))(t); table.Length() != want || !info.ReadOnly {
		t.Errorf("the device has %v of %v, read-only %v", table.Length(), want, info.ReadOnly)
	}
	must(p.Activate(ctx, v.LV))(t)
	noFindings(t, p)
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestLengthen_missedGrowth lengthens the device of a store that is longer than its
// device, as after a failed act, before the store is full, even if no extent is
// free.
func TestLengthen_missedGrowth(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.LayerReserve = 1 })
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 64 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	must(p.CreateSnapshot(ctx, "s", v.LV))(t)
	ok(t, p.do(ctx, &change{what: "extend a store on the disk alone", edit: func(e *edit) error {
		c := e.SnapshotByLV("s").LV.Clone()
		ranges, err := e.Growth(c, 4, catalog.HighEnd)
		if err != nil {
			return err
		}
		c.Segments = catalog.AppendExtents(c.Segments, ranges...)
		return e.Put(c)
	}}))
	fill(t, p, 0)
	for i := range 20 {
		writeDevice(t, path, int64(i)<<20, bytes.Repeat([]byte("x"), 1<<20))
		time.Sleep(100 * time.Millisecond)
	}
	if s := must(p.Snapshot(ctx, "s"))(t); s.Lost {
		t.Error("the snapshot is lost, although its store was not full")
	}
	noFindings(t, p)
	ok(t, p.Deactivate(ctx, v.LV))
}
