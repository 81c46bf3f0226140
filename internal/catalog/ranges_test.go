package catalog

import (
	"math/rand/v2"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// members returns a set with one entry for each extent.
func members(s RangeSet) map[[2]int]bool {
	m := map[[2]int]bool{}
	for _, r := range s {
		for i := range int(r.Count) {
			m[[2]int{r.PV, int(r.Start) + i}] = true
		}
	}
	return m
}

func randomSet(r *rand.Rand) RangeSet {
	var all []lvm2.Range
	for range r.IntN(6) {
		all = append(all, lvm2.Range{PV: r.IntN(2), Start: lvm2.Extents(r.IntN(20)), Count: lvm2.Extents(r.IntN(6))})
	}
	return NewRangeSet(all...)
}

// TestRangeSet_operations: union, intersection, difference and size agree with those of plain
// sets of extents, and a set's text is parsed as the same set.
func TestRangeSet_operations(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		a, b := randomSet(r), randomSet(r)
		ma, mb := members(a), members(b)
		mu, mi, ms := members(a.Union(b)), members(a.Intersect(b)), members(a.Subtract(b))
		for pv := range 2 {
			for e := range 30 {
				k := [2]int{pv, e}
				if mu[k] != (ma[k] || mb[k]) || mi[k] != (ma[k] && mb[k]) || ms[k] != (ma[k] && !mb[k]) {
					t.Fatalf("a=%v b=%v: union %v, intersection %v, difference %v are wrong at %v", a, b, a.Union(b), a.Intersect(b), a.Subtract(b), k)
				}
			}
		}
		if len(ma) != int(a.Size()) {
			t.Fatalf("the size of %v is %d, want %d", a, a.Size(), len(ma))
		}
		back, err := parseRangeSet(a.String())
		if err != nil || back.String() != a.String() {
			t.Fatalf("%q is parsed as %q, %v", a, back, err)
		}
	}
}

// TestParseRangeSet_refuses: text that String never writes is refused.
func TestParseRangeSet_refuses(t *testing.T) {
	for _, bad := range []string{"x", "0.1", "0+1", "0.1+", ".1+1", "0.1+1/", "-1.1+1", "0.-1+1"} {
		if s, err := parseRangeSet(bad); err == nil {
			t.Errorf("%q is parsed as %v", bad, s)
		}
	}
}
