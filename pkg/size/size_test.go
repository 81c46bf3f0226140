package size

import (
	"testing"
)

// TestRoundUp_units: RoundUp returns the next multiple, and the value itself
// for a multiple and for unit 0.
func TestRoundUp_units(t *testing.T) {
	for _, c := range []struct{ b, unit, want Bytes }{
		{0, 4 * MiB, 0}, {1, 4 * MiB, 4 * MiB}, {4 * MiB, 4 * MiB, 4 * MiB}, {4*MiB + 1, 4 * MiB, 8 * MiB}, {7, 0, 7},
	} {
		if got := c.b.RoundUp(c.unit); got != c.want {
			t.Errorf("%d.RoundUp(%d) = %d, want %d", c.b, c.unit, got, c.want)
		}
	}
}

// TestString_units: String uses the largest unit, with one decimal where
// necessary.
func TestString_units(t *testing.T) {
	for b, want := range map[Bytes]string{
		0: "0B", 513: "513B", KiB: "1KiB", 1536 * MiB: "1.5GiB", 64 * GiB: "64GiB", 2 * TiB: "2TiB", MiB + 1: "1.0MiB",
	} {
		if got := b.String(); got != want {
			t.Errorf("Bytes(%d) prints %q, want %q", uint64(b), got, want)
		}
	}
}

// TestSectors_wholeSectors: Sectors counts whole sectors, and Bytes is its
// inverse.
func TestSectors_wholeSectors(t *testing.T) {
	if got := Sectors(8192).Bytes(); got != 4*MiB {
		t.Errorf("8192 sectors are %v, want 4MiB", got)
	}
	if got := Bytes(1025).Sectors(); got != 2 {
		t.Errorf("1025 bytes hold %d whole sectors, want 2", got)
	}
}
