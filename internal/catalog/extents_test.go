package catalog

import (
	"slices"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// A store fills the gaps between others, but begins with few; what is in pieces is in
// as few as can be.
func TestPieces_bothEnds(t *testing.T) {
	free := RangeSet{{Start: 0, Count: 100}, {Start: 110, Count: 7}, {Start: 120, Count: 1}, {Start: 130, Count: 30}, {Start: 170, Count: 2}, {Start: 180, Count: 1}}
	r := func(start, count lvm2.Extents) lvm2.Range { return lvm2.Range{Start: start, Count: count} }
	for _, c := range []struct {
		what string
		got  []lvm2.Range
		want []lvm2.Range
	}{
		{"a store of one", packed(free, 1), []lvm2.Range{r(180, 1)}},
		{"a store", packed(free, 10), []lvm2.Range{r(180, 1), r(170, 2), r(153, 7)}},
		{"one that takes three gaps", packed(free, 40), []lvm2.Range{r(180, 1), r(170, 2), r(130, 30), r(110, 7)}},
		{"one that takes all", packed(free, 141), []lvm2.Range{r(180, 1), r(170, 2), r(130, 30), r(120, 1), r(110, 7), r(0, 100)}},
		{"pieces", Pieces(free, 103, LowEnd), []lvm2.Range{r(0, 100), r(130, 3)}},
		{"pieces from the end", Pieces(free, 103, HighEnd), []lvm2.Range{r(157, 3), r(0, 100)}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
}

// A store takes all that it takes at once from one disk, and grows on the disk that it is
// on, as long as one disk has the room.
func TestAllocateMore_oneDisk(t *testing.T) {
	r := func(pv int, start, count lvm2.Extents) lvm2.Range {
		return lvm2.Range{PV: pv, Start: start, Count: count}
	}
	// Disk 0 has a large piece, disk 1 some, disk 2 has gaps only.
	free := RangeSet{r(0, 100, 100), r(1, 50, 3), r(1, 60, 9), r(2, 10, 2), r(2, 20, 1), r(2, 30, 1), r(2, 40, 1)}
	vg := &lvm2.VG{PVs: []*lvm2.PV{{PECount: 200}, {PECount: 100}, {PECount: 100}}, ExtentSize: 8192}
	for _, c := range []struct {
		what string
		has  []lvm2.Range // nil: it is new
		n    lvm2.Extents
		want []lvm2.Range
	}{
		{"one extent", nil, 1, []lvm2.Range{r(2, 40, 1)}},
		{"a piece of disk 1", nil, 4, []lvm2.Range{r(1, 65, 4)}},
		{"a piece of disk 0", nil, 10, []lvm2.Range{r(0, 190, 10)}},
		{"all disks", nil, 110, []lvm2.Range{r(2, 40, 1), r(2, 30, 1), r(2, 20, 1), r(1, 62, 7), r(0, 100, 100)}},
		{"growth where it ends", []lvm2.Range{r(0, 90, 10)}, 5, []lvm2.Range{r(0, 100, 5)}},
		{"growth on its disk, in pieces", []lvm2.Range{r(2, 0, 5)}, 5, []lvm2.Range{r(2, 40, 1), r(2, 30, 1), r(2, 20, 1), r(2, 10, 2)}},
		{"growth on its last disk", []lvm2.Range{r(0, 0, 5), r(1, 0, 5)}, 9, []lvm2.Range{r(1, 60, 9)}},
		{"growth on its first disk", []lvm2.Range{r(0, 0, 5), r(2, 0, 5)}, 9, []lvm2.Range{r(0, 191, 9)}},
		{"growth on another disk as a whole", []lvm2.Range{r(2, 0, 5)}, 12, []lvm2.Range{r(0, 188, 12)}},
	} {
		e := &Edit{View: &View{VG: vg, Free: free}}
		var got []lvm2.Range
		var err error
		if c.has == nil {
			got, err = e.AllocateOn(AnyKind, c.n, HighEnd)
		} else {
			got, err = e.Growth(&lvm2.LV{Segments: AppendExtents(nil, c.has...)}, c.n, HighEnd)
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v, want %v", c.what, got, err, c.want)
		}
		if left := e.Free.Size(); left != free.Size()-c.n {
			t.Errorf("%s: %d extents are left", c.what, left)
		}
	}
}
