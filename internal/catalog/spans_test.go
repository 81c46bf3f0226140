package catalog

import (
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestHydrated_missing: while random parts are hydrated, as windows do it, the progress agrees
// with a map of every sector. Its text is parsed as the same progress.
func TestHydrated_missing(t *testing.T) {
	const length = 200
	r := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		var h Hydrated
		done := [length]bool{}
		for len(h.Missing(length)) > 0 {
			missing := h.Missing(length)
			part := missing[r.IntN(len(missing))]
			w := Span{part.Start + size.Sectors(r.IntN(int(part.Length))), 0}
			w.Length = 1 + size.Sectors(r.IntN(int(part.End()-w.Start)))
			if !missing.Contains(w) || h.Has(w) {
				t.Fatalf("%v is not missing in %v", w, h)
			}
			h = HydratedBut(missing.Without(w), length)
			for i := w.Start; i < w.End(); i++ {
				done[i] = true
			}
			n := size.Sectors(0)
			for i := range size.Sectors(length) {
				if has := h.Has(Span{i, 1}); has != done[i] || h.Missing(length).Contains(Span{i, 1}) == has {
					t.Fatalf("%v: that sector %d is hydrated should be %v", h, i, done[i])
				}
				if !done[i] {
					n++
				}
			}
			if got := h.Missing(length).Size(); got != n {
				t.Fatalf("%v lacks %d sectors, want %d", h, got, n)
			}
			if back, err := ParseHydrated(h.String()); err != nil || back.String() != h.String() || !reflect.DeepEqual(back.Missing(length), h.Missing(length)) {
				t.Fatalf("%v is parsed as %v, %v", h, back, err)
			}
		}
		if h.String() != "200" {
			t.Errorf("the progress of a hydrated fork is %v, want 200", h)
		}
	}
}

// TestParseHydrated_refuses: text that String never writes is refused.
func TestParseHydrated_refuses(t *testing.T) {
	for _, bad := range []string{"", "x", "-1", "8/", "8/2", "8/2+", "8/2+0", "8/4+5", "8/4+1/2+1", "8/2+1/3+1", "8/2+9223372036854775807"} {
		if h, err := ParseHydrated(bad); err == nil {
			t.Errorf("%q is parsed as %v", bad, h)
		}
	}
}
