package cow

import (
	"iter"
	"math/bits"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Chunks is a set of chunks of an origin, by their numbers. It uses one bit of
// memory for each chunk of the origin. It must not be used concurrently.
type Chunks struct {
	chunk  size.Bytes
	length uint64 // of the origin, in chunks; the last chunk may be partial
	words  []uint64
	count  uint64
}

// NewChunks returns an empty set for an origin of the given length, divided into
// chunks of the given size. Both must be positive.
func NewChunks(chunk, length size.Bytes) *Chunks {
	n := uint64(length.RoundUp(chunk) / chunk)
	return &Chunks{chunk: chunk, length: n, words: make([]uint64, (n+63)/64)}
}

// Count returns the number of chunks in the set.
func (s *Chunks) Count() uint64 { return s.count }

// Has reports whether chunk n is in the set.
func (s *Chunks) Has(n uint64) bool { return n < s.length && s.words[n/64]&(1<<(n%64)) != 0 }

// Add adds chunk n to the set. It ignores a chunk beyond the end of the origin.
func (s *Chunks) Add(n uint64) {
	if n >= s.length || s.Has(n) {
		return
	}
	s.words[n/64] |= 1 << (n % 64)
	s.count++
}

// Cover adds every chunk that overlaps chunk n of another division of the origin,
// into chunks of the given size. It returns the number of chunks that were not yet
// in the set. The end of chunk n must be below 2^64 bytes.
func (s *Chunks) Cover(n uint64, chunk size.Bytes) (added uint64) {
	before := s.count
	from, to := n*uint64(chunk), (n+1)*uint64(chunk) // exceptions of a Store do not overflow, see Exception.check
	for c := from / uint64(s.chunk); c < s.length && c*uint64(s.chunk) < to; c++ {
		s.Add(c)
	}
	return s.count - before
}

// Without returns the set of chunks of s that are not in t. Both sets must have the
// same origin and the same chunk size.
func (s *Chunks) Without(t *Chunks) *Chunks {
	out := &Chunks{chunk: s.chunk, length: s.length, words: make([]uint64, len(s.words))}
	for i, w := range s.words {
		if i < len(t.words) {
			w &^= t.words[i]
		}
		out.words[i] = w
		out.count += uint64(bits.OnesCount64(w))
	}
	return out
}

// Runs yields the set's chunks in ascending order, as runs of adjacent chunks: the
// first chunk of a run and the number of chunks, at most limit.
func (s *Chunks) Runs(limit uint64) iter.Seq2[uint64, uint64] {
	return func(yield func(first, n uint64) bool) {
		for at := uint64(0); at < s.length; {
			word := s.words[at/64] >> (at % 64)
			if word == 0 {
				at = (at/64 + 1) * 64
				continue
			}
			at += uint64(bits.TrailingZeros64(word))
			n := uint64(1)
			for n < limit && s.Has(at+n) {
				n++
			}
			if !yield(at, n) {
				return
			}
			at += n
		}
	}
}
