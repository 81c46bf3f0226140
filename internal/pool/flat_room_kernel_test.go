//go:build kernel

package pool

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestFlat_noRoom: without room for a flat store, an old snapshot is read by one
// device for each newer layer, up to the kernel's limit. Beyond it, activation fails
// with ErrNoSpace and names the snapshot.
func TestFlat_noRoom(t *testing.T) {
	ctx := context.Background()
	h := newDeep(t, depthFramed+4, 1, 5, 10)
	waitTrimmed(t, h.p)
	full(t, h.p)
	lv, path := h.show("s10")
	h.same(path, "s10", "in a full pool")
	if n := levels(t, h.p, "s10"); n != depthFramed-6 {
		t.Errorf("s10 is read by %d devices, want %d", n, depthFramed-6)
	}
	steep := func(is bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			all := must(h.p.Health(ctx, h.lv))(t)
			if slices.ContainsFunc(all, func(c Condition) bool { return c.Reason == "SnapshotReadDeep" }) == is {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("the volume's health is %v; SnapshotReadDeep expected: %v", all, is)
			}
		}
	}
	steep(true)
	edge, edgePath := h.show("s5") // at the kernel's limit
	h.same(edgePath, "s5", "in a full pool")
	if _, err := h.p.CreateSnapshot(ctx, "more", h.lv); !errors.Is(err, ErrPrecondition) || !strings.Contains(err.Error(), edge) {
		t.Errorf("a cut that would exceed the limit of a reader: %v", err)
	}
	h.hide(edge)
	deep := must(h.p.CreateVolume(ctx, VolumeSpec{Name: "deep", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: "s1"}}))(t)
	if _, err := h.p.Activate(ctx, deep.LV); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "s1") {
		t.Errorf("activating a snapshot that is too deep in a full pool: %v", err)
	}
	quiet(t, "lvremove -q -y "+h.p.vgName+"/rest")
	ok(t, h.p.refresh(ctx))
	deepPath := must(h.p.Activate(ctx, deep.LV))(t)
	h.same(deepPath, "s1", "with room")
	for end := time.Now().Add(30 * time.Second); levels(t, h.p, "s10") != 2; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("with room, s10 is read by %d devices", levels(t, h.p, "s10"))
		}
	}
	h.same(path, "s10", "with room")
	steep(false)
	noFindings(t, h.p)
	h.hide(lv)
	h.hide(deep.LV)
	noFlats(t, h.p)
}

// TestFlat_openedByOthers: an unneeded flat store that another process has open is
// reported, and is deleted after it is closed.
func TestFlat_openedByOthers(t *testing.T) {
	ctx := context.Background()
	h := newDeep(t, 9, 1)
	waitTrimmed(t, h.p)
	l := must(h.p.latest())(t).Snapshots.Get("s1")
	ok(t, h.p.flattenLayer(ctx, l.Of, l.LV.ID))
	f := flatsOf(t, h.p)[0]
	var file *os.File
	ok(t, h.p.onVolume(ctx, h.lv, func(ctx context.Context) error {
		return h.p.do(ctx, &change{what: "hold a store open", act: func(ctx context.Context, v *view) error {
			d := v.cowDevice(f.LV)
			_, err := h.p.single(ctx, v, d, must(v.linearTable(f.LV))(t), false)
			if err == nil {
				file, err = os.Open(h.p.dm.Node(d.name))
			}
			return err
		}})
	}))
	h.p.notAwaited(f)
	if err := h.p.onVolume(ctx, h.lv, func(ctx context.Context) error { return h.p.dropIdleFlats(ctx, h.lv) }); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), f.LV.Name) {
		t.Errorf("dropping an open flat store: %v", err)
	}
	file.Close()
	ok(t, h.p.onVolume(ctx, h.lv, func(ctx context.Context) error { return h.p.dropIdleFlats(ctx, h.lv) }))
	if all := flatsOf(t, h.p); len(all) != 0 {
		t.Errorf("flat stores are left: %+v", all)
	}
	waitIdle(t, h.p)
	noFindings(t, h.p)
}

// TestFlat_unreadGivesWayToLiveStore: a live store without room gets the extents of a
// flat store that nobody reads yet.
func TestFlat_unreadGivesWayToLiveStore(t *testing.T) {
	ctx := context.Background()
	h := newDeep(t, 9, 1)
	waitTrimmed(t, h.p)
	must(h.p.CreateVolume(ctx, VolumeSpec{Name: "reader", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: "s1"}}))(t)
	l := must(h.p.latest())(t).Snapshots.Get("s1")
	ok(t, h.p.flattenLayer(ctx, l.Of, l.LV.ID))
	if len(flatsOf(t, h.p)) != 1 {
		t.Fatal("there is no flat store")
	}
	full(t, h.p)
	live := must(h.p.latest())(t).VolumeByLV(h.lv).Live().LV
	for end := time.Now().Add(20 * time.Second); must(h.p.latest())(t).VG.LVByID(live.ID).Size() == live.Size(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the store does not grow; flat stores: %+v", flatsOf(t, h.p))
		}
		h.p.grow(ctx, &growth{storeID: live.ID, more: size.MiB, must: true, done: make(chan struct{})})
	}
	if all := flatsOf(t, h.p); len(all) != 0 {
		t.Errorf("flat stores are left: %+v", all)
	}
	noFindings(t, h.p)
}
