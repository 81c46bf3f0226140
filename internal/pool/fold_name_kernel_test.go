//go:build kernel

package pool

import (
	"context"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestFolder_nameReused repeatedly takes and deletes a snapshot of the same name,
// over an older snapshot. Each background fold frees the name before its devices
// are gone.
func TestFolder_nameReused(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.FirstStore = 8 * size.MiB })
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 256 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	must(p.CreateSnapshot(ctx, "first", v.LV))(t)
	f := must(os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0))(t)
	defer f.Close()
	for i := range 40 {
		s, err := p.CreateSnapshot(ctx, "next", v.LV)
		if errors.Is(err, ErrNoSpace) || errors.Is(err, ErrUnavailable) { // the test is faster than folding and wiping
			waitIdle(t, p)
			continue
		}
		ok(t, err)
		must(f.WriteAt(ioBuffer(t), int64(i%4)*int64(size.MiB)))(t) // chunks that the fold copies, or finds in both layers
		ok(t, p.DeleteSnapshot(ctx, s.LV))
	}
	f.Close()
	waitIdle(t, p)
	ok(t, p.Deactivate(ctx, v.LV))
}
