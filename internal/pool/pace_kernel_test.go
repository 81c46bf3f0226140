//go:build kernel

package pool

import (
	"context"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestPace_seesOthers: pace notices the use of a volume between two looks, and the end of
// the use, by the statistics of the volume's device. A few requests do not count.
func TestPace_seesOthers(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 16 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	view := must(p.latest())(t)
	c := &pace{pool: p}
	if c.used(view) {
		t.Error("the first look reports use, without an earlier look")
	}
	for i := range 200 {
		writeDevice(t, path, int64(i)*4096, make([]byte, 4096))
	}
	c.looked = time.Now() // ignores how long the writes took
	if !c.used(view) {
		t.Error("200 requests were not noticed")
	}
	if c.used(view) {
		t.Error("the requests have ended, but the volume still counts as used")
	}
	writeDevice(t, path, 0, make([]byte, 4096))
	c.looked = time.Now().Add(-time.Minute)
	if c.used(view) {
		t.Error("a few requests count as use")
	}
}
