package cow

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// States in which a store cannot be read, for errors.Is.
var (
	// ErrFresh means that no snapshot has used the store yet.
	ErrFresh = errors.New("the snapshot store is fresh: no snapshot has used it yet")
	// ErrNotStore means that the device has other content.
	ErrNotStore = errors.New("not a snapshot store")
	// ErrInvalid means that the kernel has abandoned the snapshot, because its
	// store was full or failed. Later changes of the origin are not in the store.
	ErrInvalid = errors.New("the snapshot is lost: its store was full or had an I/O error")
	// ErrDamaged means that the store holds data that the kernel never writes, or
	// was cut too short. The snapshot cannot be relied on.
	ErrDamaged = errors.New("the snapshot store is damaged")
)

// Header is the header of a store (disk_header in dm-snap-persistent.c).
type Header struct {
	Valid   bool       // false if the snapshot is lost, see ErrInvalid
	Version uint32     // of the layout; always 1
	Chunk   size.Bytes // chunk size
}

// Exception maps a chunk of the snapshot to the chunk of the store that has its
// content (disk_exception in dm-snap-persistent.c). The content is the origin's
// before a write to the origin, or was written to the snapshot. Both numbers count
// chunks of the store's chunk size.
type Exception struct {
	Origin uint64 // chunk of the origin and of the snapshot
	Store  uint64 // chunk of the store
}

const (
	magic       = "SnAp"
	version     = 1
	headerBytes = 16

	// biggestChunk is the largest power of two of bytes that fits into an int32,
	// the kernel's limit (dm_exception_store_set_chunk_size).
	biggestChunk = size.GiB

	// longestDevice is the length that file offsets can address.
	longestDevice = size.Bytes(1) << 63
)

// parseHeader parses the header at the beginning of a store. b must have at least
// headerBytes.
func parseHeader(b []byte) (Header, error) {
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(b[4*i:]) }
	switch {
	case word(0) == 0: // the kernel checks nothing else
		return Header{}, ErrFresh
	case string(b[:4]) != magic:
		return Header{}, fmt.Errorf("%w: it begins with %q instead of %q", ErrNotStore, b[:4], magic)
	}
	h := Header{Valid: word(1) != 0, Version: word(2), Chunk: size.Sectors(word(3)).Bytes()}
	switch {
	case h.Version != version:
		return Header{}, fmt.Errorf("%w: its version is %d, and only version %d is known", ErrDamaged, h.Version, version)
	case h.Chunk == 0 || h.Chunk > biggestChunk || h.Chunk&(h.Chunk-1) != 0:
		return Header{}, fmt.Errorf("%w: its chunk size of %d sectors is not a power of two up to %v", ErrDamaged, word(3), biggestChunk)
	}
	return h, nil
}

// NewHeader returns the first MinChunk bytes of a store that has no exceptions. The
// bytes after them must be zero up to the end of the second chunk. The result equals
// what the kernel writes when it first loads a snapshot with a fresh store. A store
// with this header can also be loaded read-only, unlike a fresh store. chunk must pass
// CheckChunk.
func NewHeader(chunk size.Bytes) []byte {
	b := make([]byte, MinChunk)
	copy(b, magic)
	for i, word := range []uint32{1, version, uint32(chunk.Sectors())} {
		binary.LittleEndian.PutUint32(b[4*(i+1):], word)
	}
	return b
}

// parseException parses an entry of an area.
func parseException(b []byte) Exception {
	return Exception{Origin: binary.LittleEndian.Uint64(b), Store: binary.LittleEndian.Uint64(b[8:])}
}

// check returns an error if e cannot be in a store with the given chunk size and
// length. If it returns nil, the ends of both chunks, in bytes, do not overflow.
func (e Exception) check(chunk, length size.Bytes) error {
	switch {
	case !isData(chunk, e.Store):
		return fmt.Errorf("%w: it lists chunk %d of the origin at chunk %d of the store, which holds metadata", ErrDamaged, e.Origin, e.Store)
	case e.Store >= uint64(length/chunk):
		return fmt.Errorf("%w: it lists chunk %d of the origin at chunk %d of the store, beyond the end of the store at %d bytes", ErrDamaged, e.Origin, e.Store, length)
	case e.Origin >= uint64(longestDevice/chunk):
		return fmt.Errorf("%w: it lists chunk %d of the origin, beyond the end of any device", ErrDamaged, e.Origin)
	}
	return nil
}
