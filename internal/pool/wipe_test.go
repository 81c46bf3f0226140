package pool

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestFlushWiped_failure: after a failed flush no piece on the same disk counts as wiped,
// although the disk's next flush succeeds. Pieces on other disks count.
func TestFlushWiped_failure(t *testing.T) {
	piece := func(broken bool, pvs ...int) *wiping {
		lv := catalog.NewLV("", "trash")
		for i, pv := range pvs {
			lv.Segments = append(lv.Segments, lvm2.Segment{Start: lvm2.Extents(i), Count: 1, Type: lvm2.TypeStriped, Stripes: []lvm2.Stripe{{PV: pv}}})
		}
		f, err := os.Create(filepath.Join(t.TempDir(), "piece"))
		if broken { // a pipe cannot be flushed
			f.Close()
			var r *os.File
			r, f, err = os.Pipe()
			t.Cleanup(func() { r.Close() })
		}
		if err != nil {
			t.Fatal(err)
		}
		return &wiping{lv: lv, file: f, wiped: lv.Size()}
	}
	todo := []*wiping{piece(false, 2), piece(true, 0, 2), piece(false, 0), piece(false, 0, 1), piece(false, 1), piece(false, 2)}
	left := failedTrash{is: map[lvm2.ID]bool{}}
	flushWiped(todo, &left)
	for i, wiped := range []bool{true, false, false, false, true, true} {
		if got := todo[i].wiped > 0; got != wiped || left.is[todo[i].lv.ID] == wiped {
			t.Errorf("piece %d: wiped: %v, want %v; failures: %v", i, got, wiped, left.why)
		}
	}
}
