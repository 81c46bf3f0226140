package cow

import (
	"encoding/binary"
	"fmt"
	"io"
	"iter"

	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Flat is the layout of a flat store: a store through which the kernel reads an old
// snapshot with one snapshot target, however many newer layers the snapshot reads
// through. A flat store has a header and areas of its own. The areas point to the
// chunks of the layers' stores, which follow one after another. The kernel expects
// the areas at fixed places, so the device of the flat store is a table of pieces:
//
//	header and area 0   on the device that Write wrote to
//	a gap               never read
//	area 1              on the device that Write wrote to
//	…
//	the layers' stores  beginning at Data
//
// The flat store must be loaded read-only. Its data chunks lie where the kernel
// would put areas, which is harmless only if the kernel adds no exceptions.
type Flat struct {
	Chunk size.Bytes // smallest chunk size of the layers
	Areas uint64     // number of areas, at least 1
}

// NewFlat returns the layout of a flat store with room for the given number of
// exceptions and for the empty entry that ends their list. chunk must be positive.
func NewFlat(chunk size.Bytes, exceptions uint64) Flat {
	return Flat{chunk, exceptions/entriesPerArea(chunk) + 1}
}

// Metadata returns the length of the header and the areas, without the gaps.
func (f Flat) Metadata() size.Bytes { return size.Bytes(1+f.Areas) * f.Chunk }

// Data returns the offset of the first layer's store in the flat store.
func (f Flat) Data() size.Sectors { return size.Sectors(f.data()) * f.Chunk.Sectors() }

func (f Flat) data() uint64 { return areaChunk(f.Chunk, f.Areas-1) + 1 }

// FlatPiece is a piece of a flat store's metadata: Length sectors that begin at
// From on the device with the metadata, and at At in the flat store.
type FlatPiece struct{ At, From, Length size.Sectors }

// Pieces returns the pieces of the metadata in ascending order. The kernel never
// reads the gaps between the pieces.
func (f Flat) Pieces() []FlatPiece {
	chunk := f.Chunk.Sectors()
	out := make([]FlatPiece, 0, f.Areas)
	out = append(out, FlatPiece{Length: 2 * chunk})
	for area := uint64(1); area < f.Areas; area++ {
		out = append(out, FlatPiece{At: size.Sectors(areaChunk(f.Chunk, area)) * chunk, From: size.Sectors(1+area) * chunk, Length: chunk})
	}
	return out
}

// Write writes the header and the areas with the exceptions of Merge to the
// beginning of w. It writes whole chunks from memory that O_DIRECT accepts, and
// does not flush. It returns the number of exceptions.
//
// Errors: an error of merged or of w; an error if there are more exceptions than
// the areas have room for.
func (f Flat) Write(w io.WriterAt, merged iter.Seq2[Exception, error]) (count uint64, err error) {
	buf, free, err := directio.Buffer(f.Chunk)
	if err != nil {
		return 0, err
	}
	defer free()
	copy(buf, NewHeader(f.Chunk))
	if _, err := w.WriteAt(buf, 0); err != nil {
		return 0, err
	}
	clear(buf)
	perArea := entriesPerArea(f.Chunk)
	for e, err := range merged {
		if err != nil {
			return count, err
		}
		if count/perArea+1 >= f.Areas && count%perArea == perArea-1 {
			return count, fmt.Errorf("too many exceptions: %d areas have room for fewer than %d", f.Areas, f.Areas*perArea)
		}
		entry := buf[count%perArea*entryBytes:]
		binary.LittleEndian.PutUint64(entry, e.Origin)
		binary.LittleEndian.PutUint64(entry[8:], f.data()+e.Store)
		if count++; count%perArea == 0 {
			if _, err := w.WriteAt(buf, int64(count/perArea)*int64(f.Chunk)); err != nil {
				return count, err
			}
			clear(buf)
		}
	}
	// The first free entry of this area ends the list.
	_, err = w.WriteAt(buf, int64(1+count/perArea)*int64(f.Chunk))
	return count, err
}
