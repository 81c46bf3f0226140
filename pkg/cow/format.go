package cow

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// What can be wrong with a store.
var (
	// ErrFresh means that no snapshot has used the store yet.
	ErrFresh = errors.New("the snapshot store is fresh: no snapshot was loaded with it yet")
	// ErrNotStore means that something else is on the device.
	ErrNotStore = errors.New("this is no snapshot store")
	// ErrInvalid means that the kernel gave the snapshot up, because its store
	// was full or failed. What was changed after that is not in the store.
	ErrInvalid = errors.New("the snapshot is lost: its store was full or had an I/O error")
	// ErrDamaged means that the store holds what the kernel never writes, or was
	// cut too short. The snapshot cannot be relied on.
	ErrDamaged = errors.New("the snapshot store is damaged")
)

// Header is the header of a store (disk_header in dm-snap-persistent.c).
type Header struct {
	Valid   bool   // false when the snapshot is lost, for good
	Version uint32 // of the layout; there is only 1
	Chunk   size.Bytes
}

// Exception is a chunk whose content is in the store (disk_exception in
// dm-snap-persistent.c). Both numbers count chunks of the store's chunk size.
type Exception struct {
	Origin uint64 // which chunk of the origin, or of the snapshot if that was written to
	Store  uint64 // where its content is in the store
}

const (
	magic       = "SnAp"
	version     = 1
	headerBytes = 16

	// biggestChunk is the biggest power of two whose bytes an int32 can count,
	// which is what the kernel asks for (dm_exception_store_set_chunk_size).
	biggestChunk = size.GiB

	// longestDevice is the end of what a file offset can reach.
	longestDevice = size.Bytes(1) << 63
)

// parseHeader reads a header from the beginning of a store, of which b has at
// least headerBytes.
func parseHeader(b []byte) (Header, error) {
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(b[4*i:]) }
	switch {
	case word(0) == 0: // all that the kernel looks at
		return Header{}, ErrFresh
	case string(b[:4]) != magic:
		return Header{}, fmt.Errorf("%w: it begins with %q instead of %q", ErrNotStore, b[:4], magic)
	}
	h := Header{Valid: word(1) != 0, Version: word(2), Chunk: size.Sectors(word(3)).Bytes()}
	switch {
	case h.Version != version:
		return Header{}, fmt.Errorf("%w: its version is %d, and %d is the only one known", ErrDamaged, h.Version, version)
	case h.Chunk == 0 || h.Chunk > biggestChunk || h.Chunk&(h.Chunk-1) != 0:
		return Header{}, fmt.Errorf("%w: its chunk size of %d sectors is no power of two up to %v", ErrDamaged, word(3), biggestChunk)
	}
	return h, nil
}

// NewHeader returns the beginning of a store that no snapshot was loaded with
// yet, MinChunk long. With zeroes behind it, up to the end of the second chunk,
// it is what the kernel makes of a fresh store when it loads the first snapshot;
// so made in advance, the store can be loaded read-only too.
func NewHeader(chunk size.Bytes) []byte {
	b := make([]byte, MinChunk)
	copy(b, magic)
	for i, word := range []uint32{1, version, uint32(chunk.Sectors())} {
		binary.LittleEndian.PutUint32(b[4*(i+1):], word)
	}
	return b
}

// parseException reads an entry of an area.
func parseException(b []byte) Exception {
	return Exception{Origin: binary.LittleEndian.Uint64(b), Store: binary.LittleEndian.Uint64(b[8:])}
}

// check returns an error if e cannot be in a store of the given chunk size and
// length. After it both ends of both chunks can be counted in bytes.
func (e Exception) check(chunk, length size.Bytes) error {
	switch {
	case !isData(chunk, e.Store):
		return fmt.Errorf("%w: it lists chunk %d of the origin at its own chunk %d, which holds metadata", ErrDamaged, e.Origin, e.Store)
	case e.Store >= uint64(length/chunk):
		return fmt.Errorf("%w: it lists chunk %d of the origin at its own chunk %d, beyond its end at %d bytes", ErrDamaged, e.Origin, e.Store, length)
	case e.Origin >= uint64(longestDevice/chunk):
		return fmt.Errorf("%w: it lists chunk %d of the origin, which no device can have", ErrDamaged, e.Origin)
	}
	return nil
}
