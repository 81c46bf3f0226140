package lvm2

import (
	"encoding/binary"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The layout of a physical volume's label, which is in one of the first four
// sectors.
const (
	labelSectors    = 4
	labelSector     = 1 // the sector to which lvm2 and this package write the label
	labelHeader     = 32
	labelMagic      = "LABELONE"
	labelType       = "LVM2 001"
	labelAreas      = labelHeader + idLength + 8
	labelExtVersion = 2
	labelUsed       = 1 // the physical volume is in a volume group
)

// region is a range of bytes of a device.
type region struct{ offset, size size.Bytes }

// label is the label of a physical volume.
type label struct {
	id       ID
	size     size.Bytes // of the device
	data     []region   // size 0 in the last region: to the end of the device
	metadata []region
	used     bool // in a volume group; lvm2 records this since 2.02.99
}

// findLabel looks for a label in the first sectors of a device. It returns nil if
// there is none, and an error if there is a label that lvm2 would reject.
func findLabel(b []byte) (*label, error) {
	for n := range labelSectors {
		s := b[n*size.SectorBytes : (n+1)*size.SectorBytes]
		if !isLabel(s, n) {
			continue
		}
		if binary.LittleEndian.Uint32(s[16:]) != checksum(s[20:]) {
			return nil, fmt.Errorf("the LVM2 label in sector %d has a wrong checksum: %w", n, ErrDamaged)
		}
		l, err := decodeLabel(s)
		if err != nil {
			return nil, fmt.Errorf("the LVM2 label in sector %d: %w", n, err)
		}
		return l, nil
	}
	return nil, nil
}

// isLabel reports whether lvm2 recognizes the n-th sector as a label, even if the
// label is damaged. A label that wipefs has erased lacks only the type.
func isLabel(s []byte, n int) bool {
	return string(s[:8]) == labelMagic && binary.LittleEndian.Uint64(s[8:]) == uint64(n) && string(s[24:32]) == labelType
}

func decodeLabel(s []byte) (*label, error) {
	if binary.LittleEndian.Uint32(s[20:]) != labelHeader {
		return nil, fmt.Errorf("its header is not at byte %d: %w", labelHeader, ErrDamaged)
	}
	id, err := ParseID(string(s[labelHeader : labelHeader+idLength]))
	if err != nil {
		return nil, fmt.Errorf("%v: %w", err, ErrDamaged) //nolint:errorlint // the label is damaged, no argument is invalid
	}
	l := &label{id: id, size: size.Bytes(binary.LittleEndian.Uint64(s[labelHeader+idLength:]))}
	rest := s[labelAreas:]
	if l.data, rest, err = decodeRegions(rest); err != nil {
		return nil, err
	}
	if l.metadata, rest, err = decodeRegions(rest); err != nil {
		return nil, err
	}
	l.used = len(rest) >= 8 && binary.LittleEndian.Uint32(rest) > 0 && binary.LittleEndian.Uint32(rest[4:])&labelUsed != 0
	return l, nil
}

// decodeRegions decodes a list that ends with 16 zero bytes.
func decodeRegions(b []byte) (list []region, rest []byte, err error) {
	for len(b) >= 16 {
		r := region{size.Bytes(binary.LittleEndian.Uint64(b)), size.Bytes(binary.LittleEndian.Uint64(b[8:]))}
		b = b[16:]
		if r.offset == 0 {
			return list, b, nil
		}
		list = append(list, r)
	}
	return nil, nil, fmt.Errorf("a list of areas has no end: %w", ErrDamaged)
}

// encode returns the content of sector labelSector.
func (l *label) encode() []byte {
	s := make([]byte, 0, size.SectorBytes)
	s = append(s, labelMagic...)
	s = binary.LittleEndian.AppendUint64(s, labelSector)
	s = binary.LittleEndian.AppendUint32(s, 0)
	s = binary.LittleEndian.AppendUint32(s, labelHeader)
	s = append(s, labelType...)
	s = append(s, l.id...)
	s = binary.LittleEndian.AppendUint64(s, uint64(l.size))
	for _, list := range [][]region{l.data, l.metadata} {
		for _, r := range append(list[:len(list):len(list)], region{}) {
			s = binary.LittleEndian.AppendUint64(s, uint64(r.offset))
			s = binary.LittleEndian.AppendUint64(s, uint64(r.size))
		}
	}
	s = binary.LittleEndian.AppendUint32(s, labelExtVersion)
	flags := uint32(0)
	if l.used {
		flags = labelUsed
	}
	s = binary.LittleEndian.AppendUint32(s, flags)
	s = s[:size.SectorBytes]
	binary.LittleEndian.PutUint32(s[16:], checksum(s[20:]))
	return s
}
