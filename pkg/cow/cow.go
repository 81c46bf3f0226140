// Package cow knows the layout of the kernel's persistent snapshot store, the
// COW device of a dm snapshot target (Documentation/admin-guide/device-mapper/
// snapshot.rst and drivers/md/dm-snap-persistent.c describe it).
//
// The store is divided into chunks. Chunk 0 is a header; then areas follow,
// each one chunk of exception entries (16 bytes each: the origin's chunk, the
// store's chunk) and as many data chunks as it has entries.
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
