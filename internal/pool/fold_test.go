package pool

import (
	"context"
	"errors"
	"testing"

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
	history := func(orders ...[2]uint64) *volume {
		o := &volume{}
		for _, x := range orders {
			o.layers = append(o.layers, &layer{order: x[0], through: x[1]})
		}
		return o
	}
	for _, c := range []struct {
		o    *volume
		lost int // layers, without a live one all are
	}{
		{history([2]uint64{1, 1}, [2]uint64{2, 2}), 0},
		{history([2]uint64{1, 4}, [2]uint64{5, 5}, [2]uint64{6, 9}), 0},
		{history([2]uint64{1, 4}, [2]uint64{6, 6}), 1},
		{history([2]uint64{1, 1}, [2]uint64{4, 6}, [2]uint64{7, 7}), 1},
		{history([2]uint64{1, 1}, [2]uint64{2, 4}, [2]uint64{6, 7}), 2},
	} {
		live := c.o.layers[len(c.o.layers)-1]
		live.snap = &lvm2.LV{}
		c.o.findLoss()
		lost := 0
		for _, l := range c.o.layers {
			if l.lost {
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
		heir := &layer{lv: lv, length: c.length.Sectors(), chunk: c.chunk.Sectors()}
		gone := &layer{lv: lv, length: c.length.Sectors(), chunk: c.chunk.Sectors()}
		live := &layer{lv: lv, length: c.length.Sectors(), chunk: c.chunk.Sectors(), snap: &lvm2.LV{}}
		o := &volume{lv: lv, layers: []*layer{heir, gone, live}}
		if got := (&view{}).foldable(o, heir, gone); got != c.want {
			t.Errorf("%v in chunks of %v: foldable %v", c.length, c.chunk, got)
		}
		if (&view{}).foldable(o, gone, live) {
			t.Error("the live layer can be folded")
		}
	}
}

// What reads through what, in a history with snapshots that collected side by side.
func TestPaths(t *testing.T) {
	o := &volume{}
	add := func(id string, order, through, over uint64, named bool) {
		o.layers = append(o.layers, &layer{lv: &lvm2.LV{ID: lvm2.ID(id)}, order: order, through: through, over: over, named: named})
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
	o.layers[8].snap = &lvm2.LV{}
	o.findLoss()
	v := &view{pinned: map[lvm2.ID]bool{}}
	names := func(layers []*layer) (s string) {
		for _, l := range layers {
			s += string(l.lv.ID)
		}
		return s
	}
	for i, want := range []string{"abfghi", "bfghi", "cfghi", "dfghi", "efghi", "fghi", "ghi", "hi", "i"} {
		if got := names(o.path(o.layers[i])); got != want || o.layers[i].lost {
			t.Errorf("path %s, want %s; lost: %v", got, want, o.layers[i].lost)
		}
	}
	if got := names(v.needed(o)) + "-" + names(v.unneeded(o)); got != "abdefghi-c" {
		t.Errorf("needed and not: %s", got)
	}
	for gone, heir := range map[int]int{1: 0, 5: -1, 7: 6} {
		var want *layer
		if heir >= 0 {
			want = o.layers[heir]
		}
		if got := o.reader(v.needed(o), o.layers[gone]); got != want {
			t.Errorf("the heir of %s is %v", o.layers[gone].lv.ID, got)
		}
	}
	// Without f only g, h and i are whole.
	o.layers = append(o.layers[:5:5], o.layers[6:]...)
	o.findLoss()
	for _, l := range o.layers {
		if want := l.order < 6; l.lost != want {
			t.Errorf("without f %s is lost: %v", l.lv.ID, l.lost)
		}
	}
}

// A new newest layer has no place that one whose newer ones were removed waits for.
func TestNextOrder(t *testing.T) {
	for _, c := range []struct {
		layers []*layer
		live   bool
		want   uint64
	}{
		{nil, false, 1},
		{[]*layer{{order: 1, through: 1}}, true, 2},
		{[]*layer{{order: 1, through: 1}, {order: 2, through: 5}}, true, 6},
		{[]*layer{{order: 1, through: 1}, {order: 2, through: 5}}, false, 7},
		{[]*layer{{order: 1, through: 1, over: 4}}, false, 6}, // 2 and 3 were adopted with it, over 4
		{[]*layer{{order: 1, through: 1, over: 3}, {order: 2, through: 2, over: 3}, {order: 3, through: 3}}, true, 4},
	} {
		o := &volume{layers: c.layers}
		for _, l := range o.layers {
			l.lv = &lvm2.LV{}
		}
		if c.live {
			o.layers[len(o.layers)-1].snap = &lvm2.LV{}
		}
		got := o.nextOrder()
		if got != c.want {
			t.Errorf("place %d after %d layers, want %d", got, len(o.layers), c.want)
		}
		o.layers = append(o.layers, &layer{lv: &lvm2.LV{}, order: got, through: got, snap: &lvm2.LV{}})
		o.findLoss()
		for _, l := range o.layers[:len(o.layers)-1] {
			if l.lost == c.live {
				t.Errorf("below a layer at %d that of %d is lost: %v", got, l.order, l.lost)
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
	id := func(name string) lvm2.ID { return g.vg.LV(name).ID }
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
			p.current.Store(g.view)
			if c.broken != nil {
				p.broken.Store(&c.broken)
			}
			f := newFold(p, foldPair{c.volume, id("heir"), id("gone")})
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
