package lvm2

import (
	"encoding/binary"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The layout of a metadata area: a header of one sector, and a ring buffer of texts.
const (
	mdaHeaderSize = size.SectorBytes
	mdaMagic      = " LVM2 x[5A%r0N*>"
	mdaVersion    = 1
	mdaSlots      = 40
	slotSize      = 24
	slotIgnored   = 1 // flag: the area is not in use
	textAlign     = size.SectorBytes
	// minMDASize has room for a header and two texts of one sector.
	minMDASize = 4 * size.SectorBytes
)

// slot is the place of a text in a metadata area.
type slot struct {
	offset size.Bytes // from the start of the area
	size   size.Bytes // with the NUL
	crc    uint32
	flags  uint32
}

func (s slot) ignored() bool { return s.flags&slotIgnored != 0 }

// mdaHeader is the header of a metadata area.
type mdaHeader struct {
	start     size.Bytes // on the device
	size      size.Bytes // with the header
	committed slot
	precommit slot // used during a commit; no reader uses it
}

// decodeMDAHeader decodes the header of the area that the label lists as where.
func decodeMDAHeader(b []byte, where region) (mdaHeader, error) {
	h := mdaHeader{
		start:     size.Bytes(binary.LittleEndian.Uint64(b[24:])),
		size:      size.Bytes(binary.LittleEndian.Uint64(b[32:])),
		committed: decodeSlot(b[mdaSlots:]),
		precommit: decodeSlot(b[mdaSlots+slotSize:]),
	}
	switch {
	case binary.LittleEndian.Uint32(b) != checksum(b[4:mdaHeaderSize]):
		return h, fmt.Errorf("metadata area at byte %d: the header has a wrong checksum: %w", where.offset, ErrDamaged)
	case string(b[4:20]) != mdaMagic || binary.LittleEndian.Uint32(b[20:]) != mdaVersion:
		return h, fmt.Errorf("metadata area at byte %d: the header is not LVM2's of version %d: %w", where.offset, mdaVersion, ErrDamaged)
	case h.start != where.offset || h.size != where.size || h.size < minMDASize || h.size%textAlign != 0:
		return h, fmt.Errorf("metadata area at byte %d: the header lists %d bytes at %d, but the label lists %d bytes: %w", where.offset, h.size, h.start, where.size, ErrDamaged)
	}
	if s := h.committed; s.offset != 0 && !s.ignored() && (s.offset < mdaHeaderSize || s.offset >= h.size || s.size == 0 || s.size > h.size-mdaHeaderSize) {
		return h, fmt.Errorf("metadata area at byte %d: its text of %d bytes at %d is outside the area: %w", where.offset, s.size, s.offset, ErrDamaged)
	}
	return h, nil
}

func decodeSlot(b []byte) slot {
	return slot{
		offset: size.Bytes(binary.LittleEndian.Uint64(b)), size: size.Bytes(binary.LittleEndian.Uint64(b[8:])),
		crc: binary.LittleEndian.Uint32(b[16:]), flags: binary.LittleEndian.Uint32(b[20:]),
	}
}

func (h mdaHeader) encode() []byte {
	b := make([]byte, 4, mdaHeaderSize)
	b = append(b, mdaMagic...)
	b = binary.LittleEndian.AppendUint32(b, mdaVersion)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.start))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.size))
	for _, s := range []slot{h.committed, h.precommit} {
		b = binary.LittleEndian.AppendUint64(b, uint64(s.offset))
		b = binary.LittleEndian.AppendUint64(b, uint64(s.size))
		b = binary.LittleEndian.AppendUint32(b, s.crc)
		b = binary.LittleEndian.AppendUint32(b, s.flags)
	}
	b = b[:mdaHeaderSize]
	binary.LittleEndian.PutUint32(b, checksum(b[4:]))
	return b
}

// maxText returns the length of the longest text, with its NUL, that lvm2 can also
// replace: the ring has room for the old and the new text, both rounded to sectors.
func (h mdaHeader) maxText() size.Bytes { return (h.size-mdaHeaderSize)/2 - textAlign }

// split returns the parts of the area that a text at offset uses. The ring wraps to
// the end of the header.
func (h mdaHeader) split(offset, length size.Bytes) []region {
	if offset+length <= h.size {
		return []region{{h.start + offset, length}}
	}
	tail := h.size - offset
	return []region{{h.start + offset, tail}, {h.start + mdaHeaderSize, length - tail}}
}

// next returns the offset at which lvm2 writes the next text.
func (h mdaHeader) next() size.Bytes {
	s := h.committed
	if s.offset == 0 || s.ignored() {
		return mdaHeaderSize
	}
	last := s.offset + s.size - 1
	if last >= h.size {
		last = last - h.size + mdaHeaderSize
	}
	start := (last + 1).RoundUp(textAlign)
	if h.size-last < textAlign || start > h.size-textAlign {
		return mdaHeaderSize
	}
	return start
}

// place returns the slot for a new text with the length and checksum.
func (h mdaHeader) place(length size.Bytes, crc uint32) (slot, error) {
	if length > h.maxText() {
		return slot{}, fmt.Errorf("the text has %d bytes, but the metadata area of %d bytes has room for %d: %w", length, h.size, h.maxText(), ErrMetadataFull)
	}
	s := slot{offset: h.next(), size: length, crc: crc}
	if old := h.committed; old.offset != 0 && !old.ignored() {
		// A committed text longer than maxText is readable, but may leave no room
		// for a new text.
		for _, a := range h.split(old.offset, old.size) {
			for _, b := range h.split(s.offset, s.size.RoundUp(textAlign)) {
				if a.offset < b.offset+b.size && b.offset < a.offset+a.size {
					return slot{}, fmt.Errorf("the text has %d bytes and would overwrite the committed text of %d bytes: %w", length, old.size, ErrMetadataFull)
				}
			}
		}
	}
	return s, nil
}
