// Package cow knows the layout of the kernel's persistent snapshot store, the
// COW device of a dm snapshot target (Documentation/admin-guide/device-mapper/
// snapshot.rst and drivers/md/dm-snap-persistent.c describe it).
//
// The store is divided into chunks. Chunk 0 is a header; then areas follow,
// each one chunk of exception entries (16 bytes each: the origin's chunk, the
// store's chunk) and as many data chunks as it has entries. The kernel fills
// entries and data chunks in order; the first entry whose chunk in the store is 0
// ends the list. A store that was zeroed gets its header and its first area when
// the snapshot's table is loaded.
package cow

import (
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	entryBytes = 16 // one exception: two little-endian 64-bit chunk numbers

	// MinChunk and MaxChunk bound the chunk sizes that LVM2 accepts for a snapshot.
	MinChunk = 4 * size.KiB
	MaxChunk = 512 * size.KiB
)

// CheckChunk returns an error unless chunk is a power of two between MinChunk
// and MaxChunk.
func CheckChunk(chunk size.Bytes) error {
	if chunk < MinChunk || chunk > MaxChunk || chunk&(chunk-1) != 0 {
		return fmt.Errorf("chunk size %v: must be a power of two from %v to %v", chunk, MinChunk, MaxChunk)
	}
	return nil
}

// LargestUseful returns the size at which a store can hold every chunk of an
// origin of the given length, so that it cannot overflow: the header, the data
// chunks and the areas that list them. It is LVM2's limit too
// (lib/metadata/snapshot_manip.c). Both arguments must be positive.
func LargestUseful(origin size.Bytes, chunk size.Bytes) size.Bytes {
	data := origin.RoundUp(chunk) / chunk
	perArea := chunk / entryBytes
	areas := (data + perArea) / perArea
	return (1 + data + areas) * chunk
}

// UsedSectors is how much of a store of the given chunk size is in use when it
// holds that many exceptions: the first number in the status of the snapshot. It
// begins at two chunks, the header and the first area. The status also tells the
// metadata's part, so that (used - metadata) / chunk is the number of exceptions.
//
// A store that nothing writes to any more can be cut to this length, and to no
// less: after an exact multiple of the entries of an area the next, still empty
// area counts as used, because without it the kernel does not load the store.
//
// It is exact as long as no data chunk was left out, which a crash between the
// allocation of a chunk and the write of its entry can cause. For a store that
// may have seen a crash only its status and Store.Used are the right length.
func UsedSectors(chunk size.Bytes, exceptions uint64) size.Sectors {
	perArea := entriesPerArea(chunk)
	next := areaChunk(chunk, exceptions/perArea) + 1 + exceptions%perArea
	return size.Sectors(next) * chunk.Sectors()
}

// MoreSectors is at most how much longer the used part of a store gets when that
// many exceptions are added to it, wherever its areas lie.
func MoreSectors(chunk size.Bytes, exceptions uint64) size.Sectors {
	const started = 2 // an area that has only begun, and the empty one after a full one
	return size.Sectors(exceptions+exceptions/entriesPerArea(chunk)+started) * chunk.Sectors()
}

// usedBelow is UsedSectors of a store by the highest of its data chunks, 0 for
// none: persistent_usage after read_exceptions in the kernel.
func usedBelow(chunk size.Bytes, highest uint64) size.Sectors {
	next := max(highest, areaChunk(chunk, 0)) + 1
	if !isData(chunk, next) {
		next++
	}
	return size.Sectors(next) * chunk.Sectors()
}

func entriesPerArea(chunk size.Bytes) uint64 { return uint64(chunk / entryBytes) }

// areaChunk is the chunk in which an area is, counted from 0.
func areaChunk(chunk size.Bytes, area uint64) uint64 { return 1 + area*(entriesPerArea(chunk)+1) }

// isData tells whether a chunk is neither the header nor an area.
func isData(chunk size.Bytes, n uint64) bool {
	return n > 1 && n%(entriesPerArea(chunk)+1) != 1
}
