//go:build kernel

package pool

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// newDeep makes an active volume with n snapshots, s0 to s(n-1), whose stores have
// chunks of all sizes. It expands the volume in between, and remembers the content of
// the snapshots in keep.
func newDeep(t *testing.T, n int, keep ...int) *past {
	t.Helper()
	h := newPast(t, 8*size.MiB)
	h.p.config.FirstStore = 4 * size.MiB
	for i := range n {
		h.write(1 + h.random.IntN(12))
		h.cut(fmt.Sprint("s", i), size.Bytes(4<<h.random.IntN(5))*size.KiB)
		if !slices.Contains(keep, i) {
			delete(h.want, fmt.Sprint("s", i))
		}
		if i%17 == 11 {
			h.grow(4 * size.MiB)
		}
	}
	h.write(20)
	return h
}

// show makes a volume that shows a snapshot, read-only, and returns its device.
func (h *past) show(snapshot string) (lv, path string) {
	h.t.Helper()
	ctx := context.Background()
	v := must(h.p.CreateVolume(ctx, VolumeSpec{Name: "r-" + snapshot, Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: snapshot}}))(h.t)
	return v.LV, must(h.p.Activate(ctx, v.LV))(h.t)
}

func (h *past) hide(lv string) {
	h.t.Helper()
	ok(h.t, h.p.Deactivate(context.Background(), lv))
	ok(h.t, h.p.DeleteVolume(context.Background(), lv))
}

// same fails the test unless a device has the content of a snapshot.
func (h *past) same(path, snapshot, when string) {
	h.t.Helper()
	if want := h.want[snapshot]; !bytes.Equal(readDevice(h.t, path, size.Bytes(len(want))), want) {
		h.t.Fatalf("%s: snapshot %s has other content", when, snapshot)
	}
}

// levels returns the number of snapshot devices by which the kernel reads a layer.
func levels(t *testing.T, p *Pool, snapshot string) (n int) {
	t.Helper()
	at := must(p.find(must(p.latest())(t).snapDevice(must(p.latest())(t).VG.LV(snapshot))))(t)
	if at == nil {
		t.Fatalf("snapshot %s has no device", snapshot)
	}
	byDevice := map[dm.Device]string{}
	for _, e := range must(p.dm.List())(t) {
		byDevice[e.Device] = e.Name
	}
	for name := at.Name; name != ""; n++ {
		table := must(p.dm.Table(name))(t)
		s, is := table[0].Target.(dm.Snapshot)
		if !is {
			break
		}
		name = byDevice[s.Origin]
	}
	return n
}

// flatsOf lists the flat stores in the metadata.
func flatsOf(t *testing.T, p *Pool) (all []*catalog.Flat) {
	for _, o := range must(p.latest())(t).Volumes.All() {
		all = append(all, o.Flats...)
	}
	return all
}

// noFlats waits until no flat store is left.
func noFlats(t *testing.T, p *Pool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); len(flatsOf(t, p)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("flat stores are left: %+v", flatsOf(t, p))
		}
	}
}

// TestFlat_readsAsTheStack: snapshots of any depth have the bytes of the model and of
// the stack of all layers, even while their volume is written, and are read by few
// devices.
func TestFlat_readsAsTheStack(t *testing.T) {
	const cuts = 60
	ctx := context.Background()
	deeps := []int{2, 3, catalog.FlatLevels, catalog.FlatLevels + 1, 9, 12, 23, cuts - 3, cuts}
	var keep []int
	for _, deep := range deeps {
		keep = append(keep, cuts-deep)
	}
	h := newDeep(t, cuts, keep...)
	for _, deep := range deeps {
		name := fmt.Sprint("s", cuts-deep)
		began := time.Now()
		lv, path := h.show(name)
		took := time.Since(began)
		h.same(path, name, fmt.Sprintf("%d layers deep", deep))
		n := levels(t, h.p, name)
		if n > catalog.FlatLevels || deep > catalog.FlatLevels && n != 2 {
			t.Errorf("a snapshot %d layers deep is read by %d devices", deep, n)
		}
		t.Logf("%d layers: %d devices, shown after %v", deep, n, took)
		h.write(15)
		h.same(path, name, "after writes to the volume")
		noFindings(t, h.p)
		h.hide(lv)
		noFlats(t, h.p)
	}
	for _, deep := range []int{3, 9, 23} { // compare with the stack of all layers
		name := fmt.Sprint("s", cuts-deep)
		f := openSnapshot(t, h.p, name)
		h.same(f.Name(), name, "by the stack")
		closeSnapshots(t, h.p, h.lv, f)
	}
	h.deactivate()
	lv, path := h.show("s3")
	h.same(path, "s3", "with an inactive volume")
	h.activate()
	h.write(10)
	h.same(path, "s3", "with a volume that is active again")
	noFindings(t, h.p)
	h.hide(lv)
	noFlats(t, h.p)
	h.idle("in the end")
	ok(t, h.p.Deactivate(ctx, h.lv))
}

// TestFlat_cutsWhileRead: each snapshot that is cut while an old one is read adds a
// device, until there are too many. Then another flat store replaces the first, and
// the reader does not notice.
func TestFlat_cutsWhileRead(t *testing.T) {
	h := newDeep(t, 8, 1, 7)
	ctx := context.Background()
	lv, path := h.show("s1")
	near, nearPath := h.show("s7") // the newest: it is read by no flat store
	stop, failed := make(chan struct{}), make(chan error, 1)
	go func() { // a constant reader sees no error and no other bytes
		f, err := os.Open(path)
		b := make([]byte, 256*size.KiB)
		for off := int64(0); err == nil; off = (off + int64(len(b))) % int64(len(h.want["s1"])) {
			select {
			case <-stop:
				failed <- f.Close()
				return
			default:
			}
			if _, err = f.ReadAt(b, off); err == nil && !bytes.Equal(b, h.want["s1"][off:off+int64(len(b))]) {
				err = fmt.Errorf("wrong bytes at %d", off)
			}
		}
		failed <- err
	}()
	most := 0
	for i := 8; i < 24; i++ {
		h.write(10)
		h.cut(fmt.Sprint("s", i), size.Bytes(4<<h.random.IntN(4))*size.KiB)
		if i < 22 {
			delete(h.want, fmt.Sprint("s", i))
		}
		h.write(10)
		h.same(path, "s1", fmt.Sprintf("after cut %d", i))
		h.same(nearPath, "s7", fmt.Sprintf("after cut %d", i))
		most = max(most, levels(t, h.p, "s1"), levels(t, h.p, "s7"))
		time.Sleep(200 * time.Millisecond)
	}
	close(stop)
	ok(t, <-failed)
	for end := time.Now().Add(20 * time.Second); levels(t, h.p, "s1") > catalog.FlatLevels || levels(t, h.p, "s7") > catalog.FlatLevels; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("s1 and s7 are read by %d and %d devices", levels(t, h.p, "s1"), levels(t, h.p, "s7"))
		}
	}
	t.Logf("at most %d devices", most)
	h.same(path, "s1", "in the end")
	h.same(nearPath, "s7", "in the end")
	waitTrimmed(t, h.p)
	noFindings(t, h.p)
	for i := 2; i < 23; i++ { // layers that s1 and s7 read through stay
		if i != 7 {
			h.remove(fmt.Sprint("s", i))
		}
	}
	waitTrimmed(t, h.p)
	if pairs := must(h.p.latest())(t).FoldPairs(); len(pairs) != 0 {
		t.Errorf("layers that are read can be folded: %v", pairs)
	}
	h.same(path, "s1", "after the other snapshots were deleted")
	h.remove("s1", "s7")
	h.write(10)
	noFindings(t, h.p)
	h.hide(lv)
	h.hide(near)
	noFlats(t, h.p)
	waitIdle(t, h.p)
	h.check("in the end")
	ok(t, h.p.Deactivate(ctx, h.lv))
}

// TestFlat_killedAnywhere: when a pool is opened after a kill, a flat store that is
// unfinished or unread is deleted, and a flat store that is read stays.
func TestFlat_killedAnywhere(t *testing.T) {
	ctx := context.Background()
	h := newDeep(t, 8, 1)
	layerOf := func(name string) *catalog.Layer { return must(h.p.latest())(t).Snapshots.Get(name) }
	again := func() {
		t.Helper()
		config := h.p.config
		ok(t, h.p.Close())
		h.p = openPool(t, config)
	}
	made := func() *catalog.Flat {
		t.Helper()
		ok(t, h.p.flattenLayer(ctx, layerOf("s1").Of, layerOf("s1").LV.ID))
		all := flatsOf(t, h.p)
		return all[len(all)-1]
	}
	waitTrimmed(t, h.p)

	// Nobody reads these stores yet. They stay while this process awaits a reader.
	f := made() // committed, but not written
	ok(t, h.p.do(ctx, &change{what: "unwrite", edit: func(e *edit) error {
		c := e.VG.LVByID(f.LV.ID).Clone()
		c.Tags = catalog.DropTags(c.Tags, "used")
		return e.Put(c)
	}}))
	again()
	noFlats(t, h.p)
	waitIdle(t, h.p)
	h.idle("after a store that was not written")

	made() // written, but not used
	again()
	noFlats(t, h.p)
	waitIdle(t, h.p)
	h.idle("after a store that was not used")

	f = made() // the store has a device, but the snapshot has none
	ok(t, h.p.do(ctx, &change{what: "half", act: func(ctx context.Context, v *view) error {
		o := v.VolumeByLV(h.lv)
		_, err := h.p.single(ctx, v, v.cowDevice(f.LV), must(v.flatTable(o, o.Flats[0]))(t), true)
		return err
	}}))
	again()
	noFlats(t, h.p)
	waitIdle(t, h.p)
	h.idle("after a store whose snapshot has no device")

	lv, path := h.show("s1")
	one := flatsOf(t, h.p)
	again()
	h.same(path, "s1", "after a restart")
	if now := flatsOf(t, h.p); len(now) != 1 || now[0].LV.ID != one[0].LV.ID {
		t.Errorf("the flat stores are %+v, want %+v", now, one)
	}
	noFindings(t, h.p)
	for i := range catalog.FlatLevels { // the next store is made, but is not below the snapshot yet
		h.write(5)
		h.cut(fmt.Sprint("n", i), 4*size.KiB)
	}
	again()
	h.same(path, "s1", "with another store")
	for end := time.Now().Add(20 * time.Second); levels(t, h.p, "s1") > catalog.FlatLevels || len(flatsOf(t, h.p)) != 1; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("s1 is read by %d devices, the flat stores are %+v", levels(t, h.p, "s1"), flatsOf(t, h.p))
		}
	}
	h.same(path, "s1", "with only the other store")
	noFindings(t, h.p)
	h.hide(lv)
	noFlats(t, h.p)

	// After a reboot there are no devices.
	lv, _ = h.show("s1")
	h.deactivate()
	config := h.p.config
	ok(t, h.p.Close())
	removeAll(t, h.p)
	h.p = openPool(t, config)
	noFlats(t, h.p)
	path = must(h.p.Activate(ctx, lv))(t)
	h.same(path, "s1", "after a reboot")
	h.hide(lv)
	noFlats(t, h.p)
	waitIdle(t, h.p)
	if all := settledTo(t, h.p, 0); len(all) != 0 {
		t.Errorf("devices are left: %v", all)
	}
}

// TestFlat_belowForksAndReaders: forks, forks of forks, their readers and transient
// volumes read an old snapshot through a flat store.
func TestFlat_belowForksAndReaders(t *testing.T) {
	ctx := context.Background()
	h := newDeep(t, 10, 1, 2)
	h.p.config.HydrationRate = 2 * size.MiB
	fork := must(h.p.CreateVolume(ctx, VolumeSpec{Name: "fork", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "s1"}}))(t)
	path := must(h.p.Activate(ctx, fork.LV))(t)
	h.same(path, "s1", "a fork")
	forked := content(bytes.Clone(h.want["s1"]))
	var cut content
	for i := range 7 {
		forked.scribble(t, h.random, path, 10)
		must(h.p.CreateSnapshot(ctx, fmt.Sprint("f", i), fork.LV))(t)
		if i == 0 {
			cut = bytes.Clone(forked)
		}
	}
	second := must(h.p.CreateVolume(ctx, VolumeSpec{Name: "second", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "f0"}}))(t)
	secondPath := must(h.p.Activate(ctx, second.LV))(t)
	cut.compare(t, secondPath, "the fork of a fork")
	scratch := must(h.p.CreateVolume(ctx, VolumeSpec{Name: "scratch", Mode: Block, Transient: true, Source: Source{Kind: FromSnapshot, LV: "s2"}}))(t)
	scratchPath := must(h.p.Activate(ctx, scratch.LV))(t)
	h.same(scratchPath, "s2", "a transient volume")
	written := content(bytes.Clone(h.want["s2"]))
	written.scribble(t, h.random, scratchPath, 20)
	if v := must(h.p.latest())(t); !v.VolumeByLV(fork.LV).Forked() {
		t.Error("the fork was hydrated too early for this test")
	}
	for i := range 7 {
		h.write(5)
		h.cut(fmt.Sprint("n", i), 8*size.KiB)
		forked.scribble(t, h.random, path, 5)
		written.scribble(t, h.random, scratchPath, 5)
		forked.compare(t, path, "the fork")
		cut.compare(t, secondPath, "the fork of the fork")
		written.compare(t, scratchPath, "the transient volume")
		time.Sleep(300 * time.Millisecond)
	}
	noFindings(t, h.p)
	h.p.config.HydrationRate = 0
	waitHydrated(t, h.p, fork.LV)
	waitHydrated(t, h.p, second.LV)
	forked.compare(t, path, "the hydrated fork")
	cut.compare(t, secondPath, "the hydrated fork of a fork")
	written.compare(t, scratchPath, "the transient volume")
	for _, lv := range []string{fork.LV, second.LV, scratch.LV} {
		ok(t, h.p.Deactivate(ctx, lv))
		ok(t, h.p.DeleteVolume(ctx, lv))
	}
	noFlats(t, h.p)
}
