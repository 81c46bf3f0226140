package catalog

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestFindLoss_foldedLayer: a layer that was folded away is no loss. If another layer is
// missing, the layers that read through it are lost.
func TestFindLoss_foldedLayer(t *testing.T) {
	history := func(orders ...[2]uint64) *Volume {
		o := &Volume{}
		for _, x := range orders {
			o.Layers = append(o.Layers, &Layer{Order: x[0], Through: x[1]})
		}
		return o
	}
	for _, c := range []struct {
		o    *Volume
		lost int // number of lost layers
	}{
		{history([2]uint64{1, 1}, [2]uint64{2, 2}), 0},
		{history([2]uint64{1, 4}, [2]uint64{5, 5}, [2]uint64{6, 9}), 0},
		{history([2]uint64{1, 4}, [2]uint64{6, 6}), 1},
		{history([2]uint64{1, 1}, [2]uint64{4, 6}, [2]uint64{7, 7}), 1},
		{history([2]uint64{1, 1}, [2]uint64{2, 4}, [2]uint64{6, 7}), 2},
	} {
		live := c.o.Layers[len(c.o.Layers)-1]
		live.Snap = &lvm2.LV{}
		c.o.findLoss()
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

// TestPath_sideBySide: layers that LVM2 filled side by side have a common next layer. Paths,
// needed layers, heirs and losses follow that.
func TestPath_sideBySide(t *testing.T) {
	o := &Volume{}
	add := func(id string, order, through, over uint64, named bool) {
		o.Layers = append(o.Layers, &Layer{LV: &lvm2.LV{ID: lvm2.ID(id)}, Order: order, Through: through, over: over, Named: named})
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
	o.findLoss()
	v := &View{}
	names := func(layers []*Layer) (s string) {
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
	if got := names(v.Needed(o)) + "-" + names(v.unneeded(o)); got != "abdefghi-c" {
		t.Errorf("the needed and the unneeded layers are %s", got)
	}
	for gone, heir := range map[int]int{1: 0, 5: -1, 7: 6} {
		var want *Layer
		if heir >= 0 {
			want = o.Layers[heir]
		}
		if got := o.Reader(v.Needed(o), o.Layers[gone]); got != want {
			t.Errorf("the heir of %s is %v", o.Layers[gone].LV.ID, got)
		}
	}
	// Without f, only g, h and i are readable.
	o.Layers = append(o.Layers[:5:5], o.Layers[6:]...)
	o.findLoss()
	for _, l := range o.Layers {
		if want := l.Order < 6; l.Lost != want {
			t.Errorf("without f, the loss of %s is %v, want %v", l.LV.ID, l.Lost, want)
		}
	}
}

// TestNextOrder_neverReused: a new layer gets no place that an older layer reads through. So
// layers whose newer layers were removed stay lost.
func TestNextOrder_neverReused(t *testing.T) {
	for _, c := range []struct {
		layers []*Layer
		live   bool
		want   uint64
	}{
		{nil, false, 1},
		{[]*Layer{{Order: 1, Through: 1}}, true, 2},
		{[]*Layer{{Order: 1, Through: 1}, {Order: 2, Through: 5}}, true, 6},
		{[]*Layer{{Order: 1, Through: 1}, {Order: 2, Through: 5}}, false, 7},
		{[]*Layer{{Order: 1, Through: 1, over: 4}}, false, 6}, // 2 and 3 were adopted with it, over 4
		{[]*Layer{{Order: 1, Through: 1, over: 3}, {Order: 2, Through: 2, over: 3}, {Order: 3, Through: 3}}, true, 4},
	} {
		o := &Volume{Layers: c.layers}
		for _, l := range o.Layers {
			l.LV = &lvm2.LV{}
		}
		if c.live {
			o.Layers[len(o.Layers)-1].Snap = &lvm2.LV{}
		}
		got := o.NextOrder()
		if got != c.want {
			t.Errorf("after %d layers the next place is %d, want %d", len(o.Layers), got, c.want)
		}
		o.Layers = append(o.Layers, &Layer{LV: &lvm2.LV{}, Order: got, Through: got, Snap: &lvm2.LV{}})
		o.findLoss()
		for _, l := range o.Layers[:len(o.Layers)-1] {
			if l.Lost == c.live {
				t.Errorf("with a new layer at place %d, the loss of the layer at %d is %v", got, l.Order, l.Lost)
			}
		}
	}
}
