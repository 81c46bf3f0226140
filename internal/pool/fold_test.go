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

// A history with a folded layer is whole; without the layer after it, it is not.
func TestThroughIsNoGap(t *testing.T) {
	history := func(orders ...[2]uint64) *catalog.Volume {
		o := &catalog.Volume{}
		for _, x := range orders {
			o.Layers = append(o.Layers, &catalog.Layer{Order: x[0], Through: x[1]})
		}
		return o
	}
	for _, c := range []struct {
		o    *catalog.Volume
		lost int // layers, without a live one all are
	}{
		{history([2]uint64{1, 1}, [2]uint64{2, 2}), 0},
		{history([2]uint64{1, 4}, [2]uint64{5, 5}, [2]uint64{6, 9}), 0},
		{history([2]uint64{1, 4}, [2]uint64{6, 6}), 1},
		{history([2]uint64{1, 1}, [2]uint64{4, 6}, [2]uint64{7, 7}), 1},
		{history([2]uint64{1, 1}, [2]uint64{2, 4}, [2]uint64{6, 7}), 2},
	} {
		live := c.o.Layers[len(c.o.Layers)-1]
		live.Snap = &lvm2.LV{}
		c.o.FindLoss()
		lost := 0
		for _, l := range c.o.Layers {
			if l.Lost {
				lost++
			}
		}
		if lost != c.lost {
			t.Errorf("%d layers are lost, want %d", lost, c.lost)
		}
	}
}

// TestFoldable_longVolume bounds the memory for a set of a volume's chunks.
func TestFoldable_longVolume(t *testing.T) {
	lv := &lvm2.LV{Segments: []lvm2.Segment{{Count: 1, Type: lvm2.TypeStriped, Stripes: []lvm2.Stripe{{}}}}}
	for _, c := range []struct {
		length, chunk size.Bytes
		want          bool
	}{
		{4 * size.TiB, 16 * size.KiB, true},
		{4*size.TiB + size.MiB, 16 * size.KiB, false},
		{2 * size.TiB, 4 * size.KiB, false},
		{20 * size.TiB, 128 * size.KiB, true},
	} {
		heir := &catalog.Layer{LV: lv, Length: c.length.Sectors(), Chunk: c.chunk.Sectors()}
		gone := &catalog.Layer{LV: lv, Length: c.length.Sectors(), Chunk: c.chunk.Sectors()}
		live := &catalog.Layer{LV: lv, Length: c.length.Sectors(), Chunk: c.chunk.Sectors(), Snap: &lvm2.LV{}}
		o := &catalog.Volume{LV: lv, Layers: []*catalog.Layer{heir, gone, live}}
		if got := (&view{View: &catalog.View{}}).Foldable(o, heir, gone); got != c.want {
			t.Errorf("%v in chunks of %v: foldable %v", c.length, c.chunk, got)
		}
		if (&view{View: &catalog.View{}}).Foldable(o, gone, live) {
			t.Error("the live layer can be folded")
		}
	}
}

// What reads through what, in a history with snapshots that collected side by side.
func TestPaths(t *testing.T) {
	o := &catalog.Volume{}
	add := func(id string, order, through, over uint64, named bool) {
		o.Layers = append(o.Layers, &catalog.Layer{LV: &lvm2.LV{ID: lvm2.ID(id)}, Order: order, Through: through, Over: over, Named: named})
	}
	add("a", 1, 1, 0, true)
	add("b", 2, 2, 6, false) // was live when lvm2's snapshots c to e were adopted
	add("c", 3, 3, 6, false)
	add("d", 4, 4, 6, true)
	add("e", 5, 5, 6, true)
	add("f", 6, 8, 0, false) // 7 and 8 were folded into it
	add("g", 9, 9, 0, true)
	add("h", 10, 10, 0, false)
	add("i", 11, 11, 0, true)
	o.Layers[8].Snap = &lvm2.LV{}
	o.FindLoss()
	v := &view{View: &catalog.View{Pinned: map[lvm2.ID]bool{}}}
	names := func(layers []*catalog.Layer) (s string) {
		for _, l := range layers {
			s += string(l.LV.ID)
		}
		return s
	}
	for i, want := range []string{"abfghi", "bfghi", "cfghi", "dfghi", "efghi", "fghi", "ghi", "hi", "i"} {
		if got := names(o.Path(o.Layers[i])); got != want || o.Layers[i].Lost {
			t.Errorf("path %s, want %s; lost: %v", got, want, o.Layers[i].Lost)
		}
	}
	if got := names(v.Needed(o)) + "-" + names(v.Unneeded(o)); got != "abdefghi-c" {
		t.Errorf("needed and not: %s", got)
	}
	for gone, heir := range map[int]int{1: 0, 5: -1, 7: 6} {
		var want *catalog.Layer
		if heir >= 0 {
			want = o.Layers[heir]
		}
		if got := o.Reader(v.Needed(o), o.Layers[gone]); got != want {
			t.Errorf("the heir of %s is %v", o.Layers[gone].LV.ID, got)
		}
	}
	// Without f only g, h and i are whole.
	o.Layers = append(o.Layers[:5:5], o.Layers[6:]...)
	o.FindLoss()
	for _, l := range o.Layers {
		if want := l.Order < 6; l.Lost != want {
			t.Errorf("without f %s is lost: %v", l.LV.ID, l.Lost)
		}
	}
}

// A new newest layer has no place that one whose newer ones were removed waits for.
func TestNextOrder(t *testing.T) {
	for _, c := range []struct {
		layers []*catalog.Layer
		live   bool
		want   uint64
	}{
		{nil, false, 1},
		{[]*catalog.Layer{{Order: 1, Through: 1}}, true, 2},
		{[]*catalog.Layer{{Order: 1, Through: 1}, {Order: 2, Through: 5}}, true, 6},
		{[]*catalog.Layer{{Order: 1, Through: 1}, {Order: 2, Through: 5}}, false, 7},
		{[]*catalog.Layer{{Order: 1, Through: 1, Over: 4}}, false, 6}, // 2 and 3 were adopted with it, over 4
		{[]*catalog.Layer{{Order: 1, Through: 1, Over: 3}, {Order: 2, Through: 2, Over: 3}, {Order: 3, Through: 3}}, true, 4},
	} {
		o := &catalog.Volume{Layers: c.layers}
		for _, l := range o.Layers {
			l.LV = &lvm2.LV{}
		}
		if c.live {
			o.Layers[len(o.Layers)-1].Snap = &lvm2.LV{}
		}
		got := o.NextOrder()
		if got != c.want {
			t.Errorf("place %d after %d layers, want %d", got, len(o.Layers), c.want)
		}
		o.Layers = append(o.Layers, &catalog.Layer{LV: &lvm2.LV{}, Order: got, Through: got, Snap: &lvm2.LV{}})
		o.FindLoss()
		for _, l := range o.Layers[:len(o.Layers)-1] {
			if l.Lost == c.live {
				t.Errorf("below a layer at %d that of %d is lost: %v", got, l.Order, l.Lost)
			}
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
				t.Error("nobody looks after its devices")
			}
		})
	}
}
