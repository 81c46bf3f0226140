package catalog

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestFoldable_longVolume: volumes with more chunks than a fold has memory for are not folded,
// and a live layer never is.
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
		heir := &Layer{LV: lv, Length: c.length.Sectors(), Chunk: c.chunk.Sectors()}
		gone := &Layer{LV: lv, Length: c.length.Sectors(), Chunk: c.chunk.Sectors()}
		live := &Layer{LV: lv, Length: c.length.Sectors(), Chunk: c.chunk.Sectors(), Snap: &lvm2.LV{}}
		o := &Volume{LV: lv, Layers: []*Layer{heir, gone, live}}
		if got := (&View{}).Foldable(o, heir, gone); got != c.want {
			t.Errorf("%v in chunks of %v: foldable is %v, want %v", c.length, c.chunk, got, c.want)
		}
		if (&View{}).Foldable(o, gone, live) {
			t.Error("the live layer can be folded")
		}
	}
}
