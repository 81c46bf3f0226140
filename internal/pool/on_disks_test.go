package pool

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestScattered_shrunkDisk: a store on a disk that is too short at the moment cannot be
// read. It is not a store that ends, whose layer would be lost for good.
func TestScattered_shrunkDisk(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, left := range []int64{0, 100, 4 << 10} {
		if err := f.Truncate(left); err != nil {
			t.Fatal(err)
		}
		s := &scattered{extent: size.MiB, ranges: []lvm2.Range{{Count: 1}}, files: []*os.File{f}, starts: []size.Bytes{4 * size.KiB}}
		_, err := cow.NewStore("store", s, size.MiB).Header()
		if !errors.Is(err, io.ErrUnexpectedEOF) || storeLost(err) {
			t.Errorf("with %d bytes: %v", left, err)
		}
	}
}
