package pool

import (
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestHydrated takes random parts from what is missing, as windows do, and
// compares with a map of every sector.
func TestHydrated(t *testing.T) {
	const length = 200
	r := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		var h hydrated
		done := [length]bool{}
		for len(h.missing(length)) > 0 {
			missing := h.missing(length)
			part := missing[r.IntN(len(missing))]
			w := span{part.start + size.Sectors(r.IntN(int(part.length))), 0}
			w.length = 1 + size.Sectors(r.IntN(int(part.end()-w.start)))
			if !missing.contains(w) || h.has(w) {
				t.Fatalf("%v is missing in %v", w, h)
			}
			h = hydratedBut(missing.without(w), length)
			for i := w.start; i < w.end(); i++ {
				done[i] = true
			}
			n := size.Sectors(0)
			for i := range size.Sectors(length) {
				if has := h.has(span{i, 1}); has != done[i] || h.missing(length).contains(span{i, 1}) == has {
					t.Fatalf("%v: sector %d is hydrated: %v", h, i, done[i])
				}
				if !done[i] {
					n++
				}
			}
			if got := h.missing(length).size(); got != n {
				t.Fatalf("%v lacks %d sectors, says %d", h, n, got)
			}
			if back, err := parseHydrated(h.String()); err != nil || back.String() != h.String() || !reflect.DeepEqual(back.missing(length), h.missing(length)) {
				t.Fatalf("%v is read as %v, %v", h, back, err)
			}
		}
		if h.String() != "200" {
			t.Errorf("all is hydrated: %v", h)
		}
	}
}

func TestParseHydrated(t *testing.T) {
	for _, bad := range []string{"", "x", "-1", "8/", "8/2", "8/2+", "8/2+0", "8/4+5", "8/4+1/2+1", "8/2+1/3+1", "8/2+9223372036854775807"} {
		if h, err := parseHydrated(bad); err == nil {
			t.Errorf("%q is read as %v", bad, h)
		}
	}
}

// TestForkTable: every sector of a fork leads to where it is.
func TestForkTable(t *testing.T) {
	disk, fork, copying := dm.Device{Major: 8}, dm.Device{Major: 254, Minor: 1}, dm.Device{Major: 254, Minor: 2}
	own := dm.Table{
		{Start: 0, Length: 60, Target: dm.Linear{Device: disk, Offset: 1000}},
		{Start: 60, Length: 60, Target: dm.Linear{Device: disk, Offset: 5000}},
	}
	h, err := parseHydrated("70/10+5/50+12")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []*windowOn{nil, {"window", span{70, 10}}, {"window", span{10, 5}}, {"window", span{52, 2}}, {"window", span{0, 10}}} {
		table, complete := forkOn(own, h.missing(100), "fork", w).bind(func(uuid string) (dm.Device, bool) {
			d, known := map[string]dm.Device{"fork": fork, "window": copying}[uuid]
			return d, known
		})
		if !complete {
			t.Fatalf("%v: a device is missing", w)
		}
		at := size.Sectors(0)
		for _, s := range table {
			if s.Start != at {
				t.Fatalf("%v: sector %d is mapped at %d", w, at, s.Start)
			}
			to := s.Target.(dm.Linear)
			for ; at < s.Start+s.Length; at++ {
				want := dm.Linear{Device: disk, Offset: 1000 + at}
				switch {
				case w != nil && w.holds(span{at, 1}):
					want = dm.Linear{Device: copying, Offset: at - w.start}
				case at < 100 && !h.has(span{at, 1}):
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
			t.Errorf("%v: %d sectors are mapped", w, at)
		}
	}
}
