package catalog

import (
	"slices"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestPieces_bothEnds: a store begins in at most three gaps at the high end, and then takes
// one piece. Extents that do not fit into one piece get as few pieces as possible.
func TestPieces_bothEnds(t *testing.T) {
	free := RangeSet{{Start: 0, Count: 100}, {Start: 110, Count: 7}, {Start: 120, Count: 1}, {Start: 130, Count: 30}, {Start: 170, Count: 2}, {Start: 180, Count: 1}}
	r := func(start, count lvm2.Extents) lvm2.Range { return lvm2.Range{Start: start, Count: count} }
	for _, c := range []struct {
		what string
		got  []lvm2.Range
		want []lvm2.Range
	}{
		{"a store of one extent", packed(free, 1), []lvm2.Range{r(180, 1)}},
		{"a store", packed(free, 10), []lvm2.Range{r(180, 1), r(170, 2), r(153, 7)}},
		{"a store in three gaps", packed(free, 40), []lvm2.Range{r(180, 1), r(170, 2), r(130, 30), r(110, 7)}},
		{"a store of all extents", packed(free, 141), []lvm2.Range{r(180, 1), r(170, 2), r(130, 30), r(120, 1), r(110, 7), r(0, 100)}},
		{"pieces", Pieces(free, 103, LowEnd), []lvm2.Range{r(0, 100), r(130, 3)}},
		{"pieces from the end", Pieces(free, 103, HighEnd), []lvm2.Range{r(157, 3), r(0, 100)}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
}

// TestAllocateMore_oneDisk: one allocation of a store is on one disk if a disk has enough free
// extents. A store grows on its own disks first.
func TestAllocateMore_oneDisk(t *testing.T) {
	r := func(pv int, start, count lvm2.Extents) lvm2.Range {
		return lvm2.Range{PV: pv, Start: start, Count: count}
	}
	// Disk 0 has a large piece, disk 1 has two small ones, disk 2 has only gaps.
	free := RangeSet{r(0, 100, 100), r(1, 50, 3), r(1, 60, 9), r(2, 10, 2), r(2, 20, 1), r(2, 30, 1), r(2, 40, 1)}
	vg := &lvm2.VG{PVs: []*lvm2.PV{{PECount: 200}, {PECount: 100}, {PECount: 100}}, ExtentSize: 8192}
	for _, c := range []struct {
		what string
		has  []lvm2.Range // nil for a new store
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
		{"growth that fits on another disk only", []lvm2.Range{r(2, 0, 5)}, 12, []lvm2.Range{r(0, 188, 12)}},
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
			t.Errorf("%s: %d extents are free afterwards, want %d", c.what, left, free.Size()-c.n)
		}
	}
}

// TestCleanExtents_edits: a volume gets wiped extents only. If there are too few, as many free
// extents as are missing become trash for the wiper.
func TestCleanExtents_edits(t *testing.T) {
	take := func(n lvm2.Extents, clean ...lvm2.Range) func(e *Edit) error {
		return func(e *Edit) error {
			e.Clean = NewRangeSet(clean...)
			ranges, err := e.CleanExtents(AnyKind, n)
			if err != nil || ranges == nil {
				return err
			}
			lv := e.VG.LV("bare").Clone()
			lv.Segments = AppendExtents(lv.Segments, ranges...)
			return e.Put(lv)
		}
	}
	const bare = " role=volume name=pvc-2 mode=block"
	testEdits(t, []editCase{
		{what: "enough", edit: take(3, lvm2.Range{Start: 20, Count: 2}, lvm2.Range{Start: 100, Count: 9}),
			then: []string{"bare 8+8/100+3" + bare, "free -100+3"}},
		{what: "too few", edit: take(5, lvm2.Range{Start: 20, Count: 2}),
			then: []string{"trash 22+3,inactive role=trash", "free -22+3"}},
		{what: "none", edit: take(2),
			then: []string{"trash 16+2,inactive role=trash", "free -16+2"}},
	})
}

// TestGrowth_edits: extents that a device still maps are not allocated. If only those are left,
// the error names the device.
func TestGrowth_edits(t *testing.T) {
	mapped := func(m Mapping, n lvm2.Extents, asked *int) func(e *Edit) error {
		return func(e *Edit) error {
			e.Kernel = func(_ *View, anew bool) ([]Mapping, error) {
				*asked++
				return []Mapping{m}, nil
			}
			lv := e.VG.LV("old").Clone()
			ranges, err := e.Growth(lv, n, HighEnd)
			if err != nil {
				if !strings.Contains(err.Error(), "device "+m.Device) {
					t.Errorf("%v does not name the device", err)
				}
				return err
			}
			lv.Segments = AppendExtents(lv.Segments, ranges...)
			return e.Put(lv)
		}
	}
	const disk = 499
	var free, used, full int
	testEdits(t, []editCase{
		{what: "a part is mapped", edit: mapped(Mapping{Device: "left", Range: lvm2.Range{Start: 490, Count: 9}}, 2, &free),
			then: []string{"old 400+2/488+2,ro,locked name=old" + oldTags, "free -488+2"}},
		{what: "a device of a volume", edit: mapped(Mapping{Device: "vg-bare", Range: lvm2.Range{Start: 8, Count: 8}}, 2, &used),
			then: []string{"old 400+2/497+2,ro,locked name=old" + oldTags, "free -497+2"}},
		{what: "all is mapped", edit: mapped(Mapping{Device: "left", Range: lvm2.Range{Count: disk}}, 2, &full), err: ErrNoSpace},
	})
	if free != 2 || used != 1 || full != 2 {
		t.Errorf("the kernel was asked %d, %d and %d times, want 2, 1 and 2: again only if a device maps free extents", free, used, full)
	}
}
