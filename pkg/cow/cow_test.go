package cow

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

func TestLargestUseful(t *testing.T) {
	// lvm2 2.03.16 computes 65808 sectors for a 32 MiB origin with 4 KiB chunks.
	if got := LargestUseful(32*size.MiB, 4*size.KiB).Sectors(); got != 65808 {
		t.Errorf("32 MiB origin, 4 KiB chunks: %d sectors, want 65808", got)
	}
	// A partial last chunk needs a whole one in the store.
	if a, b := LargestUseful(64*size.KiB, 64*size.KiB), LargestUseful(64*size.KiB-size.SectorBytes, 64*size.KiB); a != b {
		t.Errorf("a partial chunk needs %v, a whole one %v", b, a)
	}
}

func TestCheckChunk(t *testing.T) {
	for chunk, good := range map[size.Bytes]bool{
		0: false, 2 * size.KiB: false, 4 * size.KiB: true, 12 * size.KiB: false, 64 * size.KiB: true, 512 * size.KiB: true, size.MiB: false,
	} {
		if err := CheckChunk(chunk); (err == nil) != good {
			t.Errorf("chunk size %v: %v", chunk, err)
		}
	}
}
