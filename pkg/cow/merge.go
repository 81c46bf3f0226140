package cow

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Layer is a frozen store, one of those that an old snapshot is read through.
type Layer struct {
	Chunk  size.Bytes   // of the store
	Length size.Sectors // of the volume at the layer's cut
	Used   size.Sectors // of the store: so much of it is a part of the flat store
	// Read yields the store's exceptions, those of a Store's Exceptions.
	Read func(ctx context.Context) iter.Seq2[Exception, error]
}

// mergeMost is how many exceptions Merge holds at a time, or twice as many.
const mergeMost = 1 << 20

// Merge yields the exceptions by which a snapshot is read, whose own layer is the
// first one and which reads through the others in their order. For each chunk of
// the snapshot it is the first layer's that has the chunk, in ascending order of
// the chunks. Chunks are as small as the smallest of all layers (see Smallest),
// larger ones are split. Exception.Store counts from the beginning of the first
// layer's store, with the others' used parts behind.
//
// It holds two million exceptions of 16 bytes at most, and some of layers with few that
// are read in advance. Where there are more for chunks of the snapshot than a million, the
// stores are read again for each million. Several layers' Reads run at a time.
//
// A last element with an error comes after those that could be merged: that of a
// layer's Read, or ErrDamaged if it lists a chunk beyond what it uses.
func Merge(ctx context.Context, layers []Layer) iter.Seq2[Exception, error] {
	return merge(ctx, layers, mergeMost)
}

func merge(ctx context.Context, layers []Layer, most int) iter.Seq2[Exception, error] {
	return func(yield func(Exception, error) bool) {
		m := merger{layers: layers, chunk: Smallest(layers), most: most}
		for whole := uint64(longestDevice / m.chunk); m.to < whole; {
			m.from, m.to, m.found = m.to, whole, m.found[:0]
			if err := m.pass(ctx); err != nil {
				yield(Exception{}, err)
				return
			}
			for _, e := range m.found {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// Smallest returns the smallest chunk size of the layers.
func Smallest(layers []Layer) size.Bytes {
	chunk := biggestChunk
	for _, l := range layers {
		chunk = min(chunk, l.Chunk)
	}
	return chunk
}

// MostMerged is how many exceptions Merge yields at most.
func MostMerged(layers []Layer) uint64 {
	chunk, most := Smallest(layers), uint64(0)
	for _, l := range layers {
		most += uint64(l.Used.Bytes() / chunk)
	}
	return min(most, uint64(layers[0].Length.Bytes().RoundUp(chunk)/chunk))
}

// merger finds the exceptions for the snapshot's chunks from from on and below to.
type merger struct {
	layers   []Layer
	chunk    size.Bytes
	most     int
	from, to uint64
	found    []Exception
}

// pass reads all stores. It lowers to if it finds too many.
func (m *merger) pass(ctx context.Context) error {
	base := uint64(0)
	ahead, cancel := readAhead(ctx, m.layers)
	defer cancel()
	for i, l := range m.layers {
		parts := uint64(l.Chunk / m.chunk)
		used := uint64(l.Used.Bytes() / m.chunk)
		// A layer may be longer than the snapshot, which was cut before its
		// volume was expanded. No layer tells more than what it has itself.
		end := uint64(min(l.Length, m.layers[0].Length).Bytes().RoundUp(m.chunk) / m.chunk)
		for e, err := range ahead.exceptions(i) {
			if err != nil {
				return err
			}
			if (e.Store+1)*parts > used {
				return fmt.Errorf("%w: layer %d of %d lists chunk %d of its store, beyond the %v in use", ErrDamaged, i+1, len(m.layers), e.Store, l.Used.Bytes())
			}
			for part := range parts {
				if at := e.Origin*parts + part; at >= m.from && at < min(m.to, end) {
					m.found = append(m.found, Exception{Origin: at, Store: base + e.Store*parts + part})
				}
			}
			if len(m.found) >= 2*m.most {
				m.compact()
			}
		}
		base += used
	}
	m.compact()
	return nil
}

// compact sorts what was found, leaves of each chunk the oldest layer's, and has
// the rest wait for another pass if that is too much. Older layers' stores come first.
func (m *merger) compact() {
	slices.SortFunc(m.found, func(a, b Exception) int {
		return cmp.Or(cmp.Compare(a.Origin, b.Origin), cmp.Compare(a.Store, b.Store))
	})
	m.found = slices.CompactFunc(m.found, func(a, b Exception) bool { return a.Origin == b.Origin })
	if len(m.found) > m.most {
		m.to = m.found[m.most].Origin
		m.found = m.found[:m.most]
	}
}
