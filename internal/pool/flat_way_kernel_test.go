//go:build kernel

package pool

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// foldLong begins a fold of two layers below n newer layers that takes several seconds,
// and waits until the fold has a device. ended receives the fold's error.
func foldLong(t *testing.T, n int) (h *past, heir string, ended chan error) {
	t.Helper()
	h = newPast(t, 32*size.MiB)
	h.p.config.FirstStore = 4 * size.MiB
	h.write(10)
	h.cut("old", 4*size.KiB)
	h.write(10)
	h.cut("heir", 4*size.KiB)
	h.write(10)
	h.cut("gone", 4*size.KiB)
	h.write(1200)
	for i := range n {
		h.cut(fmt.Sprint("s", i), 4*size.KiB)
		h.write(5)
	}
	heir = must(h.p.latest())(t).Snapshots.Get("heir").LV.Name
	h.remove("gone")
	f := newFold(h.p, h.pair())
	ok(t, f.count(context.Background()))
	ended = make(chan error, 1)
	go func() { ended <- f.run(context.Background()) }()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if info := must(h.p.find(must(h.p.latest())(t).snapDevice(must(h.p.latest())(t).VG.LV(heir))))(t); info != nil && info.Live {
			return h, heir, ended
		}
		if time.Now().After(end) {
			t.Fatal("the fold did not get a device within 10 s")
		}
	}
}

// TestMakeWay_cutsBesideFold: cuts during a fold never make the fold read through more
// devices than the kernel allows: the fold ends before.
func TestMakeWay_cutsBesideFold(t *testing.T) {
	h, heir, ended := foldLong(t, 1)
	h.p.deepest = 7
	most := 0
	for i := range 16 {
		h.cut(fmt.Sprint("n", i), 4*size.KiB)
		if info := must(h.p.find(must(h.p.latest())(t).snapDevice(must(h.p.latest())(t).VG.LV(heir))))(t); info != nil {
			most = max(most, levels(t, h.p, heir))
		}
		if i%3 != 0 {
			delete(h.want, fmt.Sprint("n", i))
		}
	}
	err := <-ended
	t.Logf("the fold read through %d devices, and ended with %v", most, err)
	if most > h.p.deepest {
		t.Errorf("the fold read through %d devices, but the kernel allows %d", most, h.p.deepest)
	}
	if err != nil && !errors.Is(err, errFoldOver) {
		t.Error(err)
	}
	h.p.deepest = depthFramed
	h.check("after the fold")
	h.idle("after the fold")
}

// TestMakeWay_restoreBesideFold: a snapshot that is too deep for the kernel can be
// shown while layers that it reads through are folded: the fold stops.
func TestMakeWay_restoreBesideFold(t *testing.T) {
	h, _, ended := foldLong(t, 4)
	h.p.deepest = 6
	lv, path := h.show("old")
	h.same(path, "old", "beside a fold")
	if n := levels(t, h.p, "old"); n != 2 {
		t.Errorf("the snapshot is read by %d devices, want 2", n)
	}
	folded := 0
	if err := <-ended; err == nil {
		t.Log("the fold ended before the snapshot was shown")
		folded = 1
	} else if !errors.Is(err, errFoldOver) {
		t.Errorf("the fold returned %v", err)
	}
	noFindings(t, h.p)
	h.hide(lv)
	noFlats(t, h.p)
	h.p.deepest = depthFramed
	h.check("after the fold")
	if folded += h.fold(); folded != 1 {
		t.Errorf("%d folds, want one", folded)
	}
	h.check("in the end")
}

// TestFlat_forkInFullPool: a fork of a snapshot that lies too deep has extents for its
// flat store from the beginning, and keeps the extents and the store until it is
// hydrated: in a full pool, after a reboot, and after a rollback.
func TestFlat_forkInFullPool(t *testing.T) {
	ctx := context.Background()
	h := newDeep(t, 14, 1, 2)
	h.p.config.HydrationRate = size.MiB
	h.p.deepest = 8
	waitTrimmed(t, h.p)
	again := h.p.hydrator.stop("fork") // otherwise the hydrator makes the store first
	fork := must(h.p.CreateVolume(ctx, VolumeSpec{Name: "fork", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "s1"}}))(t)
	if fork.LV != "fork" {
		t.Fatal(fork.LV)
	}
	full(t, h.p)
	again()
	path := must(h.p.Activate(ctx, fork.LV))(t)
	h.same(path, "s1", "in a full pool")
	reboot := func() {
		t.Helper()
		config := h.p.config
		ok(t, h.p.Close())
		removeAll(t, h.p)
		h.path = ""
		h.p = openPool(t, config)
		h.p.deepest = 8
	}
	one := flatsOf(t, h.p)
	reboot()
	waitIdle(t, h.p)
	if now := flatsOf(t, h.p); len(now) != 1 || now[0].LV.ID != one[0].LV.ID {
		t.Fatalf("after a reboot the flat stores are %+v, want %+v", now, one)
	}
	if n := must(h.p.latest())(t).Free.Size(); n != 0 {
		t.Errorf("%d extents are free in a full pool", n)
	}
	path = must(h.p.Activate(ctx, fork.LV))(t)
	h.same(path, "s1", "after a reboot in a full pool")
	noFindings(t, h.p)
	h.p.config.HydrationRate = 0
	waitHydrated(t, h.p, fork.LV)
	h.same(path, "s1", "hydrated")
	noFlats(t, h.p)

	quiet(t, "lvremove -q -y "+h.p.vgName+"/rest")
	ok(t, h.p.Deactivate(ctx, fork.LV))
	ok(t, h.p.DeleteVolume(ctx, fork.LV))
	waitIdle(t, h.p)
	config := h.p.config
	config.HydrationRate = size.MiB
	ok(t, h.p.Close())
	o := Options{}
	ok(t, offline(ctx, config, o, func(p *Pool) error {
		p.deepest = 8
		_, err := p.rollback(ctx, RollbackSpec{Volume: h.lv, Snapshot: "s2"})
		return err
	}))
	h.p = openPool(t, config)
	h.p.deepest = 8
	path = must(h.p.Activate(ctx, h.lv))(t)
	h.same(path, "s2", "rolled back")
	if len(flatsOf(t, h.p)) == 0 {
		t.Error("the volume that was rolled back has no flat store")
	}
	h.p.config.HydrationRate = 0
	waitHydrated(t, h.p, h.lv)
	noFlats(t, h.p)
}

// TestFlat_mergesWithoutTheKey: while the lists of layers are merged, their volume can
// be cut and its snapshots deleted. A flat store whose layers have changed is not
// used.
func TestFlat_mergesWithoutTheKey(t *testing.T) {
	ctx := context.Background()
	h := newDeep(t, 9, 1, 2)
	waitTrimmed(t, h.p)
	slowly := func(snapshot string) (w *flatWork, merge, written chan error) {
		t.Helper()
		l := must(h.p.latest())(t).Snapshots.Get(snapshot)
		ok(t, h.p.onVolume(ctx, h.lv, func(ctx context.Context) (err error) {
			w, err = h.p.beginFlat(ctx, l.Of, l.LV.ID)
			return err
		}))
		merge, written = make(chan error), make(chan error, 1)
		read := w.sources[0].Read
		w.sources[0].Read = func(ctx context.Context) iter.Seq2[cow.Exception, error] {
			<-merge
			return read(ctx)
		}
		go func() { written <- w.write(ctx) }()
		return w, merge, written
	}
	finish := func(w *flatWork, merge, written chan error) error {
		t.Helper()
		close(merge)
		err := <-written
		return h.p.onVolume(ctx, h.lv, func(ctx context.Context) error { return h.p.endFlat(ctx, w, err) })
	}

	w, merge, written := slowly("s1")
	began := time.Now()
	h.cut("meanwhile", 8*size.KiB)
	h.remove("s3")
	h.grow(4 * size.MiB)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("a cut, a delete and an expansion took %v beside a merge", took)
	}
	waitTrimmed(t, h.p)
	for _, pair := range must(h.p.latest())(t).FoldPairs() {
		t.Errorf("%v can be folded while they are merged", pair)
	}
	ok(t, finish(w, merge, written))
	lv, path := h.show("s1")
	h.same(path, "s1", "read by a store that was made beside a cut")
	if n := levels(t, h.p, "s1"); n != 3 || len(flatsOf(t, h.p)) != 1 {
		t.Errorf("the snapshot is read by %d devices, and the flat stores are %+v", n, flatsOf(t, h.p))
	}
	noFindings(t, h.p)
	h.hide(lv)
	noFlats(t, h.p)

	w, merge, written = slowly("s1") // its snapshot is deleted, with its layer
	h.remove("s0", "s1")
	if err := finish(w, merge, written); !errors.Is(err, ErrPrecondition) {
		t.Errorf("finishing the flat store of a deleted layer: %v", err)
	}
	noFlats(t, h.p)
	waitIdle(t, h.p)
	noFindings(t, h.p)
	h.idle("after a store that was not used")
	lv, path = h.show("s2")
	h.same(path, "s2", "in the end")
	h.hide(lv)
	noFlats(t, h.p)
	if all := flatsOf(t, h.p); slices.ContainsFunc(all, func(f *catalog.Flat) bool { return f.Used == 0 }) {
		t.Errorf("flat stores are left: %+v", all)
	}
}

// TestFlat_poolClosed: closing a pool while a flat store is being made leaves no
// device of the store, and the next process frees its extents.
func TestFlat_poolClosed(t *testing.T) {
	ctx := context.Background()
	h := newDeep(t, 9, 1)
	waitTrimmed(t, h.p)
	for range mergesAtOnce { // so that the next merge waits
		h.p.merges <- struct{}{}
	}
	l := must(h.p.latest())(t).Snapshots.Get("s1")
	ended := make(chan error, 1)
	go func() { ended <- h.p.flattenLayer(ctx, l.Of, l.LV.ID) }()
	var d device
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if all := flatsOf(t, h.p); len(all) == 1 {
			d = must(h.p.latest())(t).cowDevice(all[0].LV)
			if info := must(h.p.find(d))(t); info != nil && info.OpenCount > 0 {
				break
			}
		}
		if time.Now().After(end) {
			t.Fatal("the flat store is not being written")
		}
	}
	ok(t, h.p.Close())
	if err := <-ended; err == nil {
		t.Error("the flat store was made although the pool was closed")
	}
	c := must(dm.Open())(t)
	defer c.Close()
	if info, err := c.InfoByUUID(d.uuid); !errors.Is(err, dm.ErrNotFound) {
		t.Errorf("the device of the flat store is left: %+v, %v", info, err)
	}
	h.p = openPool(t, h.p.config)
	noFlats(t, h.p)
	noFindings(t, h.p)
	lv, path := h.show("s1")
	h.same(path, "s1", "in the end")
	h.hide(lv)
	noFlats(t, h.p)
}

// TestFlat_tableIsNotReadAgain: the long table of a flat store is read from the kernel
// only if it may have changed.
func TestFlat_tableIsNotReadAgain(t *testing.T) {
	ctx := context.Background()
	h := newDeep(t, 9, 1)
	lv, path := h.show("s1")
	d := must(h.p.latest())(t).cowDevice(flatsOf(t, h.p)[0].LV)
	known := func() bool {
		t.Helper()
		return must(h.p.flatsAsLoaded(must(h.p.latest())(t)))(t)[d.name]
	}
	if !known() {
		t.Error("the table is not known after it was loaded")
	}
	h.write(10)
	h.cut("next", 4*size.KiB)
	h.same(path, "s1", "after a cut")
	if !known() {
		t.Error("the table is not known after a cut")
	}
	for _, m := range must(h.p.mappings(must(h.p.latest())(t)))(t) {
		if m.Device == d.name {
			t.Errorf("mappings read the table again: %+v", m)
		}
	}
	quiet(t, "lvchange -q --addtag somebody "+h.p.vgName+"/"+must(h.p.latest())(t).Snapshots.Get("s3").LV.Name)
	ok(t, h.p.refresh(ctx))
	if known() {
		t.Error("the table still counts as known after lvm2 has written the metadata")
	}
	h.cut("last", 4*size.KiB)
	h.same(path, "s1", "after lvm2")
	if !known() {
		t.Error("the table is not known after it was read")
	}
	noFindings(t, h.p)
	h.hide(lv)
	noFlats(t, h.p)
}
