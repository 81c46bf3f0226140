// Package history records what a load did to a pool, in a form that survives
// the machine. From the history it derives which content the pool must have,
// and which it may have.
package history

import (
	"encoding/binary"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Block is the unit of writing. A version number identifies a write. The
// version and the block's number determine every byte, so that a reader needs
// no copy.
const Block = 4 * size.KiB

// Special versions of a block.
const (
	Zero    = uint64(0)  // never written, so all zeroes
	Unknown = ^uint64(0) // expected: anything; observed: bytes of no version
)

const (
	sector  = size.SectorBytes
	sectors = int(Block) / sector
)

// Fill writes the content of a block at a version into p, which has Block
// bytes.
func Fill(p []byte, block int, version uint64) {
	for i := range sectors {
		fillSector(p[i*sector:(i+1)*sector], block, i, version)
	}
}

func fillSector(p []byte, block, i int, version uint64) {
	if version == Zero {
		clear(p)
		return
	}
	binary.LittleEndian.PutUint64(p, version)
	state := version<<24 ^ uint64(block)<<4 ^ uint64(i)
	for k := 8; k < len(p); k += 8 {
		// splitmix64
		state += 0x9e3779b97f4a7c15
		z := (state ^ state>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(p[k:], z^z>>31)
	}
}

// versionsOf returns the versions of the sectors in the block that was read as
// p, each once. There is one version unless a write was interrupted in the
// middle.
func versionsOf(p []byte, block int) []uint64 {
	var seen []uint64
	var want [sector]byte
next:
	for i := range sectors {
		s := p[i*sector : (i+1)*sector]
		v := binary.LittleEndian.Uint64(s)
		fillSector(want[:], block, i, v)
		if string(want[:]) != string(s) {
			v = Unknown
		}
		for _, x := range seen {
			if x == v {
				continue next
			}
		}
		seen = append(seen, v)
	}
	return seen
}
