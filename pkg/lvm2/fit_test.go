//go:build !kernel

package lvm2

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestFit_extentSize: a device fits if it has room for one extent, and CreateVG
// uses exactly the devices that fit.
func TestFit_extentSize(t *testing.T) {
	h := testHost(t)
	for _, c := range []struct {
		length, extent size.Bytes
		fits           bool
	}{
		{500 * size.MiB, 0, true},
		{500 * size.MiB, size.GiB, false},
		{10 * size.GiB, size.GiB, true},
		{24 * size.MiB, 0, false},
		{24 * size.MiB, size.MiB, true},
	} {
		path := filepath.Join(t.TempDir(), "disk")
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, int64(c.length))); err != nil {
			t.Fatal(err)
		}
		fit, unfit := Fit([]string{path}, nil, c.extent)
		err := CreateVG(context.Background(), h, "vg", []string{path}, CreateOptions{ExtentSize: c.extent})
		if c.fits && (len(fit) != 1 || err != nil) || !c.fits && (len(unfit) != 1 || !errors.Is(unfit[0].Err, ErrTooSmall) || !unfit[0].Certain() || !errors.Is(err, ErrTooSmall)) {
			t.Errorf("%v for extents of %v: %v, %v; a group of it: %v", c.length, c.extent, fit, unfit, err)
		}
	}
}
