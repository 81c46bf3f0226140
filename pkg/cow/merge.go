package cow

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Layer is a frozen store through which an old snapshot is read. Nothing may write
// to the store.
type Layer struct {
	Chunk  size.Bytes   // chunk size of the store
	Length size.Sectors // length of the volume when the layer became the newest
	Used   size.Sectors // used length of the store, which becomes a part of the flat store
	// Read yields the store's exceptions, as Store.Exceptions does. Merge may call
	// it several times, and the Reads of several layers concurrently.
	Read func(ctx context.Context) iter.Seq2[Exception, error]
}

// mergeMost is the number of exceptions that Merge keeps; it holds up to twice as
// many.
const mergeMost = 1 << 20

// Merge yields the exceptions of a flat store. The first layer is the snapshot's
// own, and the snapshot reads through the other layers in their order. The
// exceptions come in ascending order of Exception.Origin. For each chunk of the
// snapshot, Merge yields the exception of the first layer that has the chunk.
//
// Chunks have the smallest chunk size of all layers (see Smallest); Merge splits
// larger chunks. Exception.Store counts from the beginning of the first layer's
// store; the used parts of the other layers' stores follow.
//
// Merge holds at most about two million exceptions of 16 bytes, and the exceptions
// of short layers that it reads in advance. If it yields more than a million
// exceptions, it reads the stores again for each further million.
//
// Errors come as the last element: an error of a layer's Read; ErrDamaged if a layer
// lists a chunk beyond its used length. Merge panics if a Read panics, with a
// *ReadPanic if the Read ran in a goroutine of Merge's own.
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

// Smallest returns the smallest chunk size of the layers, and 1 GiB, the largest
// that the kernel accepts, if there are no layers.
func Smallest(layers []Layer) size.Bytes {
	chunk := biggestChunk
	for _, l := range layers {
		chunk = min(chunk, l.Chunk)
	}
	return chunk
}

// MostMerged returns the most exceptions that Merge can yield. There must be at
// least one layer.
func MostMerged(layers []Layer) uint64 {
	chunk, most := Smallest(layers), uint64(0)
	for _, l := range layers {
		most += uint64(l.Used.Bytes() / chunk)
	}
	return min(most, uint64(layers[0].Length.Bytes().RoundUp(chunk)/chunk))
}

// merger finds the exceptions for the snapshot's chunks in [from, to).
type merger struct {
	layers   []Layer
	chunk    size.Bytes
	most     int
	from, to uint64
	found    []Exception
}

// pass reads all stores. It lowers m.to if it finds more than m.most exceptions.
func (m *merger) pass(ctx context.Context) error {
	base := uint64(0)
	ahead, cancel := readAhead(ctx, m.layers)
	defer cancel()
	for i, l := range m.layers {
		parts := uint64(l.Chunk / m.chunk)
		used := uint64(l.Used.Bytes() / m.chunk)
		// A layer may be longer than the snapshot, if the volume was expanded
		// after the snapshot. Exceptions beyond a layer's own end do not count.
		end := uint64(min(l.Length, m.layers[0].Length).Bytes().RoundUp(m.chunk) / m.chunk)
		for e, err := range ahead.exceptions(i) {
			if err != nil {
				return err
			}
			if (e.Store+1)*parts > used {
				return fmt.Errorf("%w: layer %d of %d lists chunk %d of its store, beyond its used length of %v", ErrDamaged, i+1, len(m.layers), e.Store, l.Used.Bytes())
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

// compact sorts the exceptions and keeps the oldest layer's exception of each chunk:
// the stores of older layers come first. It leaves exceptions above m.most to the
// next pass.
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
