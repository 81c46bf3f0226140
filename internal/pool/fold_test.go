package pool

import (
	"context"
	"errors"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestFoldCost_worth checks which folds pay, with and without free room.
func TestFoldCost_worth(t *testing.T) {
	const extent = 4 * size.MiB
	for _, c := range []struct {
		copied, freed size.Bytes
		short, want   bool
	}{
		{0, extent, false, true},
		{0, extent - 1, false, false}, // not even an extent
		{0, 0, true, false},
		{4 * extent, extent, false, true},
		{5 * extent, extent, false, false},
		{5 * extent, extent, true, true},
		{size.GiB, 256 * size.MiB, false, true},
	} {
		if got := (foldCost{c.copied, c.freed}).worth(extent, c.short); got != c.want {
			t.Errorf("copying %v to free %v, short of room: %v: worth %v", c.copied, c.freed, c.short, got)
		}
	}
}

// TestFold_endsWithoutMetadata ends a fold while the metadata cannot be read, or
// after its volume is gone. The fold is over: readers get no writable device of the
// heir.
func TestFold_endsWithoutMetadata(t *testing.T) {
	g := newGroup(t)
	g.volume("vol", 8)
	for _, name := range []string{"heir", "gone", "live"} {
		g.cut("vol", name, 1)
	}
	id := func(name string) lvm2.ID { return g.VG.LV(name).ID }
	for _, c := range []struct {
		name   string
		volume lvm2.ID
		broken error
		want   error
	}{
		{"unread", id("vol"), ErrUnavailable, ErrUnavailable},
		{"no volume", "deleted", nil, errFoldOver},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPool(context.Background(), Config{}, Options{})
			p.ctx, p.cancel = context.WithCancel(context.Background())
			defer p.cancel()
			p.current.Store(g.view())
			if c.broken != nil {
				p.broken.Store(&c.broken)
			}
			f := newFold(p, catalog.FoldPair{Volume: c.volume, Heir: id("heir"), Gone: id("gone")})
			p.folder.running.Store(f)
			if !p.folder.writes(id("heir")) {
				t.Fatal("it does not run")
			}
			if err := f.end(); !errors.Is(err, c.want) {
				t.Errorf("it ends with %v", err)
			}
			if p.folder.writes(id("heir")) || p.folder.folds(id("gone")) {
				t.Error("the heir is written to after the fold's end")
			}
			if !p.facts.unsettled.has(c.volume) {
				t.Error("its devices are not marked as unsettled")
			}
		})
	}
}
