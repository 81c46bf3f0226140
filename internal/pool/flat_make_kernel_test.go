//go:build kernel

package pool

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// half makes a flat store for a snapshot, up to a state. end finishes or abandons it.
func (h *past) half(state, snapshot string) (end func()) {
	h.t.Helper()
	t, ctx := h.t, context.Background()
	l := must(h.p.latest())(t).Snapshots.Get(snapshot)
	switch state {
	case "made":
		var w *flatWork
		release := must(h.p.keys.lock(ctx, flatKey(l.LV.ID)))(t)
		ok(t, h.p.onVolume(ctx, h.lv, func(ctx context.Context) (err error) {
			w, err = h.p.beginFlat(ctx, l.Of, l.LV.ID)
			return err
		}))
		if w == nil {
			t.Fatalf("snapshot %s needs no flat store", snapshot)
		}
		return func() {
			t.Helper()
			family := must(h.p.latest())(t).Volumes.Get(l.Of).LV.Name
			err := h.p.onVolume(ctx, family, func(ctx context.Context) error { return h.p.endFlat(ctx, w, errHalf) })
			if release(); !errors.Is(err, errHalf) {
				t.Error(err)
			}
		}
	case "written":
		ok(t, h.p.flattenLayer(ctx, l.Of, l.LV.ID))
		noFindings(t, h.p)
		return func() {
			for _, f := range flatsOf(t, h.p) {
				h.p.notAwaited(f)
			}
		}
	}
	lv, path := h.show(snapshot) // the store becomes trash, and is being wiped
	h.same(path, snapshot, "before")
	h.hide(lv)
	return func() {}
}

// TestFlat_operationsWhileHalfMade: operations on a volume work while a flat store of
// its history is half made, written but not read, or being deleted. Nothing of the
// store is left.
func TestFlat_operationsWhileHalfMade(t *testing.T) {
	ctx := context.Background()
	for _, state := range []string{"made", "written", "gone"} {
		t.Run(state, func(t *testing.T) {
			h := newDeep(t, 9, 1, 2)
			waitTrimmed(t, h.p)
			for name, do := range map[string]func(){
				"cut":    func() { h.write(5); h.cut("cut", 4*size.KiB); h.write(5) },
				"delete": func() { h.remove("s4") },
				"expand": func() { h.grow(4 * size.MiB); h.write(5) },
				"activate": func() {
					lv, path := h.show("s2")
					h.same(path, "s2", "activated")
					h.hide(lv)
				},
				"deactivate": func() { h.deactivate(); h.activate() },
				"fork": func() {
					f := must(h.p.CreateVolume(ctx, VolumeSpec{Name: "fork", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "s1"}}))(t)
					if state == "made" {
						return // it gets a device when the store is written or abandoned
					}
					h.same(must(h.p.Activate(ctx, f.LV))(t), "s1", "a fork")
				},
			} {
				end := h.half(state, "s1")
				began := time.Now()
				do()
				if took := time.Since(began); took > 20*time.Second {
					t.Errorf("%s took %v", name, took)
				}
				end()
				if name == "fork" {
					waitHydrated(t, h.p, "fork")
					h.same(must(h.p.Activate(ctx, "fork"))(t), "s1", "the fork")
					ok(t, h.p.Deactivate(ctx, "fork"))
					ok(t, h.p.DeleteVolume(ctx, "fork"))
				}
				noFlats(t, h.p)
				noFindings(t, h.p)
			}
			h.check("in the end")
			h.deactivate()
			end := h.half(state, "s1")
			rollBack(t, h.p, h.lv, "s2")
			end()
			h.same(must(h.p.Activate(ctx, h.lv))(t), "s2", "rolled back")
			waitHydrated(t, h.p, h.lv)
			noFlats(t, h.p)
			end = h.half(state, "s1") // the store's snapshot is deleted meanwhile
			ok(t, h.p.DeleteSnapshot(ctx, "s0"))
			ok(t, h.p.DeleteSnapshot(ctx, "s1"))
			end()
			noFlats(t, h.p)
			waitIdle(t, h.p)
			noFindings(t, h.p)
			h.same(must(h.p.Activate(ctx, h.lv))(t), "s2", "in the end")
			lv, path := h.show("s2")
			h.same(path, "s2", fmt.Sprint("shown after all operations, ", state))
			h.hide(lv)
		})
	}
}
