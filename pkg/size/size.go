// Package size has types for the units in which device-mapper and LVM2 count, bytes
// and sectors of 512 bytes, so that a number cannot lose its unit.
package size

import "fmt"

// SectorBytes is the length of a sector in bytes. Device-mapper tables and LVM2
// metadata count in these units, whatever the block size of the disk.
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

// Bytes returns s in bytes. The result wraps around if it exceeds 2^64-1.
func (s Sectors) Bytes() Bytes { return Bytes(s) * SectorBytes }

// Sectors returns the number of whole sectors in b. It does not count a partial last
// sector.
func (b Bytes) Sectors() Sectors { return Sectors(b / SectorBytes) }

// RoundUp returns the smallest multiple of unit that is not below b, and b if unit is
// 0. The result wraps around if it exceeds 2^64-1.
func (b Bytes) RoundUp(unit Bytes) Bytes {
	if unit == 0 || b%unit == 0 {
		return b
	}
	return (b/unit + 1) * unit
}

// String prints b in the largest binary unit that is not above b, with one decimal
// if b is not a multiple of the unit: "1.5GiB", "512KiB", "513B". The text may be
// rounded.
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
