package catalog

import (
	"errors"
	"math"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestCopyExtents_requestedSize: a copy may request the size in its source's request, a size
// that gets as many extents, or a larger one. It never gets less than the source has.
func TestCopyExtents_requestedSize(t *testing.T) {
	v := &View{VG: &lvm2.VG{ExtentSize: (4 * size.MiB).Sectors()}}
	const mib = size.MiB
	for _, c := range []struct {
		what               string
		size, least, limit size.Bytes
		length, asked      size.Bytes
		want               lvm2.Extents // 0: ErrOutOfRange
	}{
		{"1G of 1G", 1e9, 0, 0, 956 * mib, 1e9, 239},
		{"1G of a source without a record", 1e9, 0, 0, 956 * mib, 956 * mib, 239},
		{"1G within a limit", 1e9, 0, 956 * mib, 956 * mib, 1e9, 239},
		{"1G over the limit", 1e9, 0, 1e9, 956 * mib, 1e9, 0},
		{"nothing", 0, 0, 0, 956 * mib, 1e9, 239},
		{"nothing over the limit", 0, 0, 952 * mib, 956 * mib, 1e9, 0},
		{"too small", 1e9 - 4*mib, 0, 0, 956 * mib, 1e9, 0},
		{"a byte less than requested for the source, rounded up", 1e9 - 1, 0, 0, 956 * mib, 1e9, 239},
		{"a byte more than the source has", 956*mib + 1, 0, 0, 956 * mib, 1e9, 240},
		{"100M of xfs", 1e8, 300 * mib, 0, 300 * mib, 1e8, 75},
		{"100M of xfs without a record", 1e8, 300 * mib, 0, 300 * mib, 300 * mib, 75},
		{"100M of more than the least xfs", 1e8, 300 * mib, 0, 304 * mib, 304 * mib, 0},
		{"less than requested for xfs", 1e8 - 1, 300 * mib, 0, 300 * mib, 1e8, 75},
		{"xfs that is smaller than the least size", 64 * mib, 300 * mib, 0, 64 * mib, 64 * mib, 16},
		{"largest size", math.MaxInt64, 0, 0, 956 * mib, 1e9, 0},
	} {
		n, err := v.CopyExtents(VolumeSpec{Size: c.size, Least: c.least, Limit: c.limit}, Original{Length: c.length, asked: c.asked})
		if (c.want == 0) != errors.Is(err, ErrOutOfRange) || n != c.want {
			t.Errorf("%s: %d, %v; want %d", c.what, n, err, c.want)
		}
	}
}
