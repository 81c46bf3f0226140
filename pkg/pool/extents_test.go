package pool

import (
	"slices"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// A store fills the gaps between others, but begins with few; what is in pieces is in
// as few as can be.
func TestPlaces(t *testing.T) {
	free := rangeSet{{Start: 0, Count: 100}, {Start: 110, Count: 7}, {Start: 120, Count: 1}, {Start: 130, Count: 30}, {Start: 170, Count: 2}, {Start: 180, Count: 1}}
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
		{"pieces", pieces(free, 103, lowEnd), []lvm2.Range{r(0, 100), r(130, 3)}},
		{"pieces from the end", pieces(free, 103, highEnd), []lvm2.Range{r(157, 3), r(0, 100)}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
}
