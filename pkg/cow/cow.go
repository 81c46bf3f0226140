// Package cow reads and writes the layout of the kernel's persistent snapshot
// store: the COW device of a device-mapper snapshot target.
// Documentation/admin-guide/device-mapper/snapshot.rst and
// drivers/md/dm-snap-persistent.c describe the layout.
//
// # Layout
//
// A store is divided into chunks. Chunk 0 is a header; then areas follow. An area
// is one chunk of exception entries, followed by as many data chunks as the area
// has entries. An entry has 16 bytes: the origin's chunk and the store's chunk. The
// kernel fills entries and data chunks in order. The first entry whose chunk in the
// store is 0 ends the list. A store that was zeroed gets its header and its first
// area when the snapshot's table is loaded.
//
// # Reading
//
// [Open] opens a store, also while the kernel uses it. [Store.Exceptions] yields
// its exceptions, and [Store.Used] returns the length of the part in use.
// [UsedSectors], [MoreSectors] and [LargestUseful] compute lengths without reading
// a store.
//
// # Flat stores
//
// A snapshot may read through several frozen stores, one after another. Each of
// them is a [Layer]. [Merge] merges the exceptions of the layers. [Flat] is the layout of
// a store that refers to the layers' data, so that the kernel reads the snapshot
// with one snapshot target.
package cow

import (
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// MinChunk and MaxChunk are the smallest and the largest chunk size that LVM2 accepts
// for a snapshot.
const (
	MinChunk = 4 * size.KiB
	MaxChunk = 512 * size.KiB
)

// entryBytes is the length of an entry: two little-endian 64-bit chunk numbers.
const entryBytes = 16

// CheckChunk returns an error unless chunk is a power of two between MinChunk
// and MaxChunk.
func CheckChunk(chunk size.Bytes) error {
	if chunk < MinChunk || chunk > MaxChunk || chunk&(chunk-1) != 0 {
		return fmt.Errorf("invalid chunk size %v; it must be a power of two from %v to %v", chunk, MinChunk, MaxChunk)
	}
	return nil
}

// LargestUseful returns the length of a store that cannot overflow, because it can
// hold every chunk of an origin of the given length: the header, the data chunks
// and the areas. LVM2 has the same limit (lib/metadata/snapshot_manip.c). Both
// arguments must be positive.
func LargestUseful(origin size.Bytes, chunk size.Bytes) size.Bytes {
	data := origin.RoundUp(chunk) / chunk
	perArea := chunk / entryBytes
	areas := (data + perArea) / perArea
	return (1 + data + areas) * chunk
}

// UsedSectors returns the used length of a store with the given chunk size and
// number of exceptions: the first number in the status of the snapshot. An empty
// store uses two chunks, the header and the first area. The status also has the
// metadata's part of that, so (used - metadata) / chunk is the number of
// exceptions.
//
// A store that nothing writes to any more can be cut to this length, but not to
// less. If the last area is full, the next, empty area also counts as used, because
// the kernel does not load the store without it.
//
// The length is exact if no data chunk was skipped. A crash after the allocation of
// a chunk and before the write of its entry can skip a chunk. So only the status
// and Store.Used return the correct length of a store that may have seen a crash.
func UsedSectors(chunk size.Bytes, exceptions uint64) size.Sectors {
	perArea := entriesPerArea(chunk)
	next := areaChunk(chunk, exceptions/perArea) + 1 + exceptions%perArea
	return size.Sectors(next) * chunk.Sectors()
}

// MoreSectors returns the most by which the used length of a store grows when
// exceptions are added to it, wherever the store's areas lie.
func MoreSectors(chunk size.Bytes, exceptions uint64) size.Sectors {
	const started = 2 // an area that has only begun, and the empty area after a full area
	return size.Sectors(exceptions+exceptions/entriesPerArea(chunk)+started) * chunk.Sectors()
}

// usedBelow returns the used length of a store by its highest data chunk, 0 if there
// is none: persistent_usage after read_exceptions in the kernel.
func usedBelow(chunk size.Bytes, highest uint64) size.Sectors {
	next := max(highest, areaChunk(chunk, 0)) + 1
	if !isData(chunk, next) {
		next++
	}
	return size.Sectors(next) * chunk.Sectors()
}

func entriesPerArea(chunk size.Bytes) uint64 { return uint64(chunk / entryBytes) }

// areaChunk returns the chunk of an area; areas count from 0.
func areaChunk(chunk size.Bytes, area uint64) uint64 { return 1 + area*(entriesPerArea(chunk)+1) }

// isData reports whether chunk n is neither the header nor an area.
func isData(chunk size.Bytes, n uint64) bool {
	return n > 1 && n%(entriesPerArea(chunk)+1) != 1
}
