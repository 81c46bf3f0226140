package cow

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestLargestUseful_lvm2: LargestUseful equals lvm2's limit, and rounds a
// partial chunk up.
func TestLargestUseful_lvm2(t *testing.T) {
	// lvm2 2.03.16 computes 65808 sectors for a 32 MiB origin with 4 KiB chunks.
	if got := LargestUseful(32*size.MiB, 4*size.KiB).Sectors(); got != 65808 {
		t.Errorf("32 MiB origin, 4 KiB chunks: %d sectors, want 65808", got)
	}
	// A partial last chunk needs a whole one in the store.
	if a, b := LargestUseful(64*size.KiB, 64*size.KiB), LargestUseful(64*size.KiB-size.SectorBytes, 64*size.KiB); a != b {
		t.Errorf("a partial chunk needs %v, a whole one %v", b, a)
	}
}

// TestCheckChunk_limits: only powers of two from MinChunk to MaxChunk are chunk
// sizes.
func TestCheckChunk_limits(t *testing.T) {
	for chunk, good := range map[size.Bytes]bool{
		0: false, 2 * size.KiB: false, 4 * size.KiB: true, 12 * size.KiB: false, 64 * size.KiB: true, 512 * size.KiB: true, size.MiB: false,
	} {
		if err := CheckChunk(chunk); (err == nil) != good {
			t.Errorf("chunk size %v: %v", chunk, err)
		}
	}
}

// TestUsedSectors_kernel: UsedSectors equals the status of snapshots on a 6.1
// kernel.
func TestUsedSectors_kernel(t *testing.T) {
	for _, c := range []struct {
		chunk      size.Bytes
		exceptions uint64
		want       size.Sectors
	}{
		{4 * size.KiB, 0, 16},
		{4 * size.KiB, 1, 24},
		{4 * size.KiB, 255, 2056},
		{4 * size.KiB, 256, 2072}, // with the second area, which is empty
		{4 * size.KiB, 257, 2080},
		{4 * size.KiB, 512, 4128},
		{64 * size.KiB, 0, 256},
		{64 * size.KiB, 4096, (1 + 4097 + 1) * 128},
		{size.SectorBytes, 32, 35},
	} {
		if got := UsedSectors(c.chunk, c.exceptions); got != c.want {
			t.Errorf("%d exceptions in chunks of %v use %d sectors, want %d", c.exceptions, c.chunk, got, c.want)
		}
	}
}

// TestMoreSectors_bound: the used length grows by at most MoreSectors.
func TestMoreSectors_bound(t *testing.T) {
	for chunk := MinChunk; chunk <= 64*size.KiB; chunk *= 4 {
		for _, has := range []uint64{0, 1, 254, 255, 256, 257, 4095, 4096, 5000} {
			for _, more := range []uint64{0, 1, 2, 255, 256, 257, 1000, 10000} {
				if used := UsedSectors(chunk, has+more); used > UsedSectors(chunk, has)+MoreSectors(chunk, more) {
					t.Errorf("chunks of %v: %d and %d more exceptions use %d sectors", chunk, has, more, used)
				}
			}
		}
	}
}

// TestUsedSectors_largestUseful: a full store of the largest useful length uses
// no more than that.
func TestUsedSectors_largestUseful(t *testing.T) {
	for chunk := MinChunk; chunk <= MaxChunk; chunk *= 2 {
		for _, chunks := range []uint64{1, 255, 256, 257, 4095, 4096, 32768, 100000} {
			used, largest := UsedSectors(chunk, chunks), LargestUseful(size.Bytes(chunks)*chunk, chunk).Sectors()
			if used > largest {
				t.Errorf("%d chunks of %v use %d sectors, more than the largest useful %d", chunks, chunk, used, largest)
			}
		}
	}
}
