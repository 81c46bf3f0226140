package cow

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestChunks_runs: Runs yields adjacent chunks in order, at most limit at a
// time, and chunks beyond the origin's end are ignored.
func TestChunks_runs(t *testing.T) {
	s := NewChunks(4*size.KiB, 200*4*size.KiB-1)
	for _, n := range []uint64{0, 1, 2, 63, 64, 65, 66, 130, 199, 200, 1 << 60} {
		s.Add(n)
		s.Add(n)
	}
	var got [][2]uint64
	for first, n := range s.Runs(3) {
		got = append(got, [2]uint64{first, n})
	}
	if want := [][2]uint64{{0, 3}, {63, 3}, {66, 1}, {130, 1}, {199, 1}}; !slices.Equal(got, want) {
		t.Errorf("runs %v, want %v", got, want)
	}
	if s.Count() != 9 || s.Has(200) || !s.Has(199) {
		t.Errorf("%d chunks, has 200: %v, has 199: %v", s.Count(), s.Has(200), s.Has(199))
	}
}

// TestChunks_coverAndWithout: Cover and Without agree with sets of bytes, for
// all divisions of an origin.
func TestChunks_coverAndWithout(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, chunk := range []size.Bytes{1, 2, 4, 8} {
		for _, other := range []size.Bytes{1, 2, 4, 8} {
			for range 50 {
				length := size.Bytes(1 + random.IntN(300))
				s, held := NewChunks(chunk, length), NewChunks(chunk, length)
				bytes := map[uint64]bool{}
				for range random.IntN(20) {
					n := random.Uint64N(uint64(length/other) + 3)
					for b := n * uint64(other); b < (n+1)*uint64(other); b++ {
						if c := b / uint64(chunk); c < uint64(length.RoundUp(chunk)/chunk) {
							bytes[c] = true
						}
					}
					before := s.Count()
					if added := s.Cover(n, other); added != s.Count()-before {
						t.Fatalf("added %d, the set grew by %d", added, s.Count()-before)
					}
					held.Add(random.Uint64N(uint64(length)))
				}
				left := s.Without(held)
				count := uint64(0)
				for c := range uint64(length) + 10 {
					if s.Has(c) != bytes[c] {
						t.Fatalf("length %d, chunks of %d by %d: chunk %d is in the set: %v", length, chunk, other, c, s.Has(c))
					}
					if left.Has(c) != (bytes[c] && !held.Has(c)) {
						t.Fatalf("chunk %d is left: %v", c, left.Has(c))
					}
					if left.Has(c) {
						count++
					}
				}
				if left.Count() != count {
					t.Fatalf("%d chunks are left, but Count is %d", count, left.Count())
				}
			}
		}
	}
}
