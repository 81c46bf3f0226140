//go:build kernel

package pool

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestFlatNoRoom: without room for a store an old snapshot is read by a device for
// each newer one, as far as the kernel can, and beyond that the error says what is missing.
func TestFlatNoRoom(t *testing.T) {
	ctx := context.Background()
	h := newDeep(t, depthFramed+4, 1, 5, 10)
	waitTrimmed(t, h.p)
	full(t, h.p)
	lv, path := h.show("s10")
	h.same(path, "s10", "in a full pool")
	if n := levels(t, h.p, "s10"); n != depthFramed-6 {
		t.Errorf("it is read by %d devices", n)
	}
	steep := func(is bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			all := must(h.p.Health(ctx, h.lv))(t)
			if slices.ContainsFunc(all, func(c Condition) bool { return c.Reason == "SnapshotReadDeep" }) == is {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("the volume's health: %v", all)
			}
		}
	}
	steep(true)
	edge, edgePath := h.show("s5") // one more device would be the last that the kernel takes
	h.same(edgePath, "s5", "in a full pool")
	if _, err := h.p.CreateSnapshot(ctx, "more", h.lv); !errors.Is(err, ErrPrecondition) || !strings.Contains(err.Error(), edge) {
		t.Errorf("a cut that puts what is read too deep: %v", err)
	}
	h.hide(edge)
	deep := must(h.p.CreateVolume(ctx, VolumeSpec{Name: "deep", Mode: Block, ReadOnly: true, Source: Source{FromSnapshot, "s1"}}))(t)
	if _, err := h.p.Activate(ctx, deep.LV); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "s1") {
		t.Errorf("too deep in a full pool: %v", err)
	}
	quiet(t, "lvremove -q -y "+h.p.vgName+"/rest")
	ok(t, h.p.refresh(ctx))
	deepPath := must(h.p.Activate(ctx, deep.LV))(t)
	h.same(deepPath, "s1", "with room")
	for end := time.Now().Add(30 * time.Second); levels(t, h.p, "s10") != 2; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("with room it is read by %d devices", levels(t, h.p, "s10"))
		}
	}
	h.same(path, "s10", "with room")
	steep(false)
	noFindings(t, h.p)
	h.hide(lv)
	h.hide(deep.LV)
	noFlats(t, h.p)
}
