package pool

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestForkOn_everySector: every sector of a fork's table leads to its content.
func TestForkOn_everySector(t *testing.T) {
	disk, fork, copying := dm.Device{Major: 8}, dm.Device{Major: 254, Minor: 1}, dm.Device{Major: 254, Minor: 2}
	own := dm.Table{
		{Start: 0, Length: 60, Target: dm.Linear{Device: disk, Offset: 1000}},
		{Start: 60, Length: 60, Target: dm.Linear{Device: disk, Offset: 5000}},
	}
	h, err := catalog.ParseHydrated("70/10+5/50+12")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []*windowOn{nil, {"window", catalog.Span{Start: 70, Length: 10}}, {"window", catalog.Span{Start: 10, Length: 5}}, {"window", catalog.Span{Start: 52, Length: 2}}, {"window", catalog.Span{Start: 0, Length: 10}}} {
		table, complete := forkOn(own, h.Missing(100), "fork", w).bind(func(uuid string) (dm.Device, bool) {
			d, known := map[string]dm.Device{"fork": fork, "window": copying}[uuid]
			return d, known
		})
		if !complete {
			t.Fatalf("%v: a device is missing", w)
		}
		at := size.Sectors(0)
		for _, s := range table {
			if s.Start != at {
				t.Fatalf("%v: a piece of the table begins at sector %d, want %d", w, s.Start, at)
			}
			to := s.Target.(dm.Linear)
			for ; at < s.Start+s.Length; at++ {
				want := dm.Linear{Device: disk, Offset: 1000 + at}
				switch {
				case w != nil && w.Holds(catalog.Span{Start: at, Length: 1}):
					want = dm.Linear{Device: copying, Offset: at - w.Start}
				case at < 100 && !h.Has(catalog.Span{Start: at, Length: 1}):
					want = dm.Linear{Device: fork, Offset: at}
				case at >= 60:
					want.Offset = 5000 + at - 60
				}
				if got := (dm.Linear{Device: to.Device, Offset: to.Offset + at - s.Start}); got != want {
					t.Fatalf("window %v, sector %d leads to %v, want %v", w, at, got, want)
				}
			}
		}
		if at != own.Length() {
			t.Errorf("%v: the table has %d sectors, want %d", w, at, own.Length())
		}
	}
}
