package pool

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestSearch_badSectors hydrates volumes on disks with bad sectors. Everything is
// copied soon, except the surroundings of the bad sectors, and these too when the
// disk works again.
func TestSearch_badSectors(t *testing.T) {
	const length = size.Sectors(4 << 30 / 512)
	all := span{0, length}
	for _, x := range []struct {
		name   string
		bad    spans
		pauses int          // pauses until everything else is copied
		left   size.Sectors // sectors left at that moment
	}{
		{"nothing", nil, 0, 0},
		{"one sector", spans{{5000000, 8}}, 1, leastWindow},
		{"the first", spans{{0, 1}}, 1, leastWindow},
		{"the last", spans{{length - 1, 1}}, 1, leastWindow},
		{"some", spans{{100, 8}, {1 << 20, 1}, {1<<20 + 5000, 1}, {6 << 20, 1}}, 4, 8 * leastWindow},
		{"a GiB", spans{{2 << 20, 2 << 20}}, 12, 4 << 20},
		{"everything", spans{all}, 12, length},
	} {
		t.Run(x.name, func(t *testing.T) {
			var s search
			var h hydrated
			pauses := 0
			step := func(bad spans) {
				w := s.next(h.missing(length), idleWindow.Sectors())
				if !h.missing(length).contains(w) || w.length == 0 || w.length > idleWindow.Sectors() {
					t.Fatalf("%v is to be copied of %v", w, h)
				}
				for _, b := range bad {
					if b.start < w.end() && w.start < b.end() {
						if !s.failed(w) {
							pauses++
						}
						return
					}
				}
				h = hydratedBut(h.missing(length).without(w), length)
				if s.copied(); len(h.left) > mostLeft {
					t.Fatalf("%d parts are left: %v", len(h.left), h)
				}
			}
			for tries := 0; len(h.missing(length)) > 0 && pauses <= x.pauses; tries++ {
				if step(x.bad); tries > 1000 {
					t.Fatalf("it does not end: %v, %+v", h, s)
				}
			}
			if got := h.missing(length).size(); got > x.left {
				t.Errorf("%d sectors are left, %d bad: %v", got, x.bad.size(), h)
			}
			for tries := 0; len(h.missing(length)) > 0; tries++ {
				if step(nil); tries > 200 {
					t.Fatalf("well again, and left are %v", h.missing(length))
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
	var h hydrated
	for range 2000 {
		w := s.next(h.missing(length), leastWindow)
		if w.start/leastWindow%2 == 1 { // every second window is bad
			s.failed(w)
			continue
		}
		h = hydratedBut(h.missing(length).without(w), length)
		s.copied()
		if len(h.left) > mostLeft || len(h.String()) > 512 {
			t.Fatalf("%d parts are left: %v", len(h.left), h)
		}
	}
	if len(h.left) != mostLeft {
		t.Errorf("%d parts are left: %v", len(h.left), h)
	}
}
