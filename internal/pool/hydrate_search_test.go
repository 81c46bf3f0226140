package pool

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestSearch_badSectors hydrates volumes on disks with bad sectors. Everything is
// copied soon, except the surroundings of the bad sectors, and these too when the
// disk works again.
func TestSearch_badSectors(t *testing.T) {
	const length = size.Sectors(4 << 30 / 512)
	all := catalog.Span{Start: 0, Length: length}
	for _, x := range []struct {
		name   string
		bad    catalog.Spans
		pauses int          // pauses until everything else is copied
		left   size.Sectors // sectors left at that moment
	}{
		{"nothing", nil, 0, 0},
		{"one sector", catalog.Spans{{Start: 5000000, Length: 8}}, 1, leastWindow},
		{"the first", catalog.Spans{{Start: 0, Length: 1}}, 1, leastWindow},
		{"the last", catalog.Spans{{Start: length - 1, Length: 1}}, 1, leastWindow},
		{"some", catalog.Spans{{Start: 100, Length: 8}, {Start: 1 << 20, Length: 1}, {Start: 1<<20 + 5000, Length: 1}, {Start: 6 << 20, Length: 1}}, 4, 8 * leastWindow},
		{"a GiB", catalog.Spans{{Start: 2 << 20, Length: 2 << 20}}, 12, 4 << 20},
		{"everything", catalog.Spans{all}, 12, length},
	} {
		t.Run(x.name, func(t *testing.T) {
			var s search
			var h catalog.Hydrated
			pauses := 0
			step := func(bad catalog.Spans) {
				w := s.next(h.Missing(length), idleWindow.Sectors())
				if !h.Missing(length).Contains(w) || w.Length == 0 || w.Length > idleWindow.Sectors() {
					t.Fatalf("%v is to be copied of %v", w, h)
				}
				for _, b := range bad {
					if b.Start < w.End() && w.Start < b.End() {
						if !s.failed(w) {
							pauses++
						}
						return
					}
				}
				h = catalog.HydratedBut(h.Missing(length).Without(w), length)
				if s.copied(); len(h.Left) > catalog.MostLeft {
					t.Fatalf("%d parts are left: %v", len(h.Left), h)
				}
			}
			for tries := 0; len(h.Missing(length)) > 0 && pauses <= x.pauses; tries++ {
				if step(x.bad); tries > 1000 {
					t.Fatalf("it does not end: %v, %+v", h, s)
				}
			}
			if got := h.Missing(length).Size(); got > x.left {
				t.Errorf("%d sectors are left, %d bad: %v", got, x.bad.Size(), h)
			}
			for tries := 0; len(h.Missing(length)) > 0; tries++ {
				if step(nil); tries > 200 {
					t.Fatalf("the disk works again, but %v are left", h.Missing(length))
				}
			}
			if pauses == 0 && !s.calm() {
				t.Errorf("in the end: %+v", s)
			}
		})
	}
}

// TestSearch_mostLeft skips no part that the tag has no room to record.
func TestSearch_mostLeft(t *testing.T) {
	const length = size.Sectors(4 << 30 / 512)
	var s search
	var h catalog.Hydrated
	for range 2000 {
		w := s.next(h.Missing(length), leastWindow)
		if w.Start/leastWindow%2 == 1 { // every second window is bad
			s.failed(w)
			continue
		}
		h = catalog.HydratedBut(h.Missing(length).Without(w), length)
		s.copied()
		if len(h.Left) > catalog.MostLeft || len(h.String()) > 512 {
			t.Fatalf("%d parts are left: %v", len(h.Left), h)
		}
	}
	if len(h.Left) != catalog.MostLeft {
		t.Errorf("%d parts are left: %v", len(h.Left), h)
	}
}
