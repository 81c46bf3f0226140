//go:build kernel

package pool

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestThaw: what its owner has left frozen goes on; and a freeze during an operation
// on the volume, which may be its own, is left alone.
func TestThaw(t *testing.T) {
	p := testPool(t, nil)
	v, _, dir := mountedVolume(t, p, "ext4", 32*size.MiB)
	release := must(p.keys.lock(t.Context(), lvKey(v.LV)))(t)
	ok(t, setFrozen(dir, true))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if thawed, err := p.Thaw(ctx, v.LV, dir); thawed || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("during an operation: thawed %v, %v", thawed, err)
	}
	ok(t, setFrozen(dir, false)) // EINVAL if it is not frozen any more
	release()
	for _, frozen := range []bool{false, true, false} {
		if frozen {
			ok(t, setFrozen(dir, true))
		}
		if thawed, err := p.Thaw(t.Context(), v.LV, dir); thawed != frozen || err != nil {
			t.Errorf("frozen %v: thawed %v, %v", frozen, thawed, err)
		}
		if err := setFrozen(dir, false); !errors.Is(err, unix.EINVAL) {
			t.Errorf("it is still frozen: %v", err)
		}
	}
}
