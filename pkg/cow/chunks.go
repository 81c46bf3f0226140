package cow

import (
	"iter"
	"math/bits"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Chunks is a set of the chunks of an origin, by their numbers. It takes one bit
// of memory for every chunk that the origin has.
type Chunks struct {
	chunk  size.Bytes
	length uint64 // of the origin, in chunks; the last may be a partial one
	words  []uint64
	count  uint64
}

// NewChunks returns an empty set for an origin of the given length. Both must be
// positive.
func NewChunks(chunk, length size.Bytes) *Chunks {
	n := uint64(length.RoundUp(chunk) / chunk)
	return &Chunks{chunk: chunk, length: n, words: make([]uint64, (n+63)/64)}
}

// Count returns the number of chunks in the set.
func (s *Chunks) Count() uint64 { return s.count }

// Has tells whether a chunk is in the set.
func (s *Chunks) Has(n uint64) bool { return n < s.length && s.words[n/64]&(1<<(n%64)) != 0 }

// Add puts a chunk into the set. One beyond the origin's end is left out.
func (s *Chunks) Add(n uint64) {
	if n >= s.length || s.Has(n) {
		return
	}
	s.words[n/64] |= 1 << (n % 64)
	s.count++
}

// Cover puts every chunk into the set that has a byte of chunk n of an origin
// that is divided in another way, and returns how many of them were not in it.
func (s *Chunks) Cover(n uint64, chunk size.Bytes) (added uint64) {
	before := s.count
	from, to := n*uint64(chunk), (n+1)*uint64(chunk) // Exception.check: no overflow
	for c := from / uint64(s.chunk); c < s.length && c*uint64(s.chunk) < to; c++ {
		s.Add(c)
	}
	return s.count - before
}

// Without returns the chunks of s that are not in t, a set for the same origin
// divided in the same way.
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

// Runs yields the set's chunks in ascending order as runs of neighbours: the
// first one and how many, at most limit.
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
