package cow

import (
	"encoding/binary"
	"fmt"
	"io"
	"iter"

	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Flat is the layout of a store that is put together to read an old snapshot by
// one snapshot target, however many newer layers the snapshot reads through: a
// header and areas of its own, and behind them the layers' stores one after
// another, to whose chunks the areas point. The kernel finds the areas at fixed
// places, so that the store's device is a table of pieces:
//
//	header and area 0   on the device that Write was given
//	a gap               nothing is ever read there
//	area 1              on that device again
//	…
//	the layers' stores  from Data on
//
// The kernel does not mind that data chunks lie where a store of its own making
// has areas, as long as nothing is added to the store: it must be loaded read-only.
type Flat struct {
	Chunk size.Bytes // the smallest of the layers
	Areas uint64     // for which there is room, at least one
}

// NewFlat returns the layout with room for that many exceptions. After them there
// is room for the entry, or the area, that ends their list.
func NewFlat(chunk size.Bytes, exceptions uint64) Flat {
	return Flat{chunk, exceptions/entriesPerArea(chunk) + 1}
}

// Metadata is the length of the header and the areas, without what is between them.
func (f Flat) Metadata() size.Bytes { return size.Bytes(1+f.Areas) * f.Chunk }

// Data is where the first layer's store begins.
func (f Flat) Data() size.Sectors { return size.Sectors(f.data()) * f.Chunk.Sectors() }

func (f Flat) data() uint64 { return areaChunk(f.Chunk, f.Areas-1) + 1 }

// FlatPiece is a piece of the metadata: Length sectors that are at From on the
// device with the metadata, and at At in the store.
type FlatPiece struct{ At, From, Length size.Sectors }

// Pieces returns where the metadata are, in ascending order. Between the pieces
// nothing is ever read.
func (f Flat) Pieces() []FlatPiece {
	chunk := f.Chunk.Sectors()
	out := make([]FlatPiece, 0, f.Areas)
	out = append(out, FlatPiece{Length: 2 * chunk})
	for area := uint64(1); area < f.Areas; area++ {
		out = append(out, FlatPiece{At: size.Sectors(areaChunk(f.Chunk, area)) * chunk, From: size.Sectors(1+area) * chunk, Length: chunk})
	}
	return out
}

// Write writes the header and the areas with these exceptions, those of Merge, to
// the beginning of w in pieces of whole chunks, from memory that O_DIRECT accepts.
// It returns how many exceptions there were. The caller has to flush.
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
			return count, fmt.Errorf("there is room for less than %d exceptions in %d areas", f.Areas*perArea, f.Areas)
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
	// With its first entry free, this area ends the list.
	_, err = w.WriteAt(buf, int64(1+count/perArea)*int64(f.Chunk))
	return count, err
}
