// Package size has the units in which device-mapper and LVM2 count, so that a
// number cannot lose its unit on the way from one to the other.
package size

import "fmt"

// SectorBytes is the length of a sector: device-mapper tables and LVM2
// metadata count in units of 512 bytes, whatever the disk's own block size.
const SectorBytes = 512

// Bytes is a length or an offset in bytes.
type Bytes uint64

// Sectors is a length or an offset in units of 512 bytes.
type Sectors uint64

// Common lengths.
const (
	KiB Bytes = 1 << (10 * (iota + 1))
	MiB
	GiB
	TiB
)

// Bytes returns the length in bytes.
func (s Sectors) Bytes() Bytes { return Bytes(s) * SectorBytes }

// Sectors returns the number of whole sectors in b; a partial last sector is
// not counted.
func (b Bytes) Sectors() Sectors { return Sectors(b / SectorBytes) }

// RoundUp returns the smallest multiple of unit that is not below b.
// A unit of 0 leaves b as it is.
func (b Bytes) RoundUp(unit Bytes) Bytes {
	if unit == 0 || b%unit == 0 {
		return b
	}
	return (b/unit + 1) * unit
}

// String prints b in the largest binary unit in which it has at most one
// decimal: "1.5GiB", "512KiB", "513B".
func (b Bytes) String() string {
	for _, u := range []struct {
		unit Bytes
		name string
	}{{TiB, "TiB"}, {GiB, "GiB"}, {MiB, "MiB"}, {KiB, "KiB"}} {
		if b < u.unit {
			continue
		}
		if b%u.unit == 0 {
			return fmt.Sprintf("%d%s", b/u.unit, u.name)
		}
		return fmt.Sprintf("%.1f%s", float64(b)/float64(u.unit), u.name)
	}
	return fmt.Sprintf("%dB", uint64(b))
}
