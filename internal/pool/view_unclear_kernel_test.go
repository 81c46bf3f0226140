//go:build kernel

package pool

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestView_unclearTagsThroughRestarts: while a tag is not understood, the pool works
// but discards nothing, even after restarts, and health reports the tag. Once the tag
// is gone, the pool discards what was deleted meanwhile.
func TestView_unclearTagsThroughRestarts(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.HydrationRate = size.MiB })
	base := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 32 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, base.LV))(t)
	const at = 30 << 20
	writeDevice(t, path, at, bytes.Repeat([]byte("A"), 65536))
	clone := must(p.CreateVolume(ctx, VolumeSpec{Name: "clone", Size: 32 * size.MiB, Mode: Block, Source: Source{Kind: FromVolume, LV: base.LV}}))(t)
	writeDevice(t, path, at, bytes.Repeat([]byte("B"), 65536)) // the layer has A
	other := must(p.CreateVolume(ctx, VolumeSpec{Name: "other", Size: 8 * size.MiB, Mode: Block}))(t)
	extra := must(p.CreateSnapshot(ctx, "extra", base.LV))(t)
	config := p.config

	for _, odd := range []string{"dmsnap:name=again", "dmsnap:source=no=escape", "dmsnap:later"} {
		ok(t, p.Deactivate(ctx, clone.LV))
		waitIdle(t, p)
		ok(t, p.Close())
		lvm(t, "lvchange", "--addtag", odd, p.vgName+"/"+clone.LV)
		p = openPool(t, config)
		v := must(p.latest())(t)
		if len(v.Trash) > 0 || len(v.VolumeByLV(base.LV).Layers) != 2 {
			t.Errorf("%s: after a restart, %d layers are left and %d logical volumes are trash", odd, len(v.VolumeByLV(base.LV).Layers), len(v.Trash))
		}
		if _, err := p.Activate(ctx, clone.LV); err == nil {
			t.Errorf("%s: a volume whose tags are not understood was activated", odd)
		}
		if said := p.PoolHealth(ctx); !strings.Contains(said[0].Message, p.vgName+"/"+clone.LV) || said[0].Reason != "SpaceNotReclaimed" {
			t.Errorf("%s: health says %v", odd, said)
		}
		if odd == "dmsnap:later" { // volumes and snapshots that are deleted meanwhile stay
			ok(t, p.DeleteVolume(ctx, other.LV))
			ok(t, p.DeleteSnapshot(ctx, extra.LV))
			if v = must(p.latest())(t); len(v.Trash) > 0 || v.VG.LV(other.LV) == nil || v.VG.LV(extra.LV) == nil {
				t.Errorf("a logical volume was discarded; there are %d pieces of trash", len(v.Trash))
			}
		}
		lvm(t, "lvchange", "--deltag", odd, p.vgName+"/"+clone.LV)
		for end := time.Now().Add(10 * time.Second); must(p.latest())(t).Unclear != nil && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		}
		copied := must(p.Activate(ctx, clone.LV))(t)
		if got := readPart(t, copied, at, 4096); got[0] != 'A' {
			t.Errorf("%s: afterwards the clone reads %q, want A", odd, got[:4])
		}
	}
	ok(t, p.DeleteVolume(ctx, clone.LV))
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if v := must(p.latest())(t); v.VG.LV(other.LV) == nil && len(v.Trash) == 0 {
			break
		} else if time.Now().After(end) {
			t.Fatalf("volumes that were deleted meanwhile stay: %v", p.PoolHealth(ctx))
		}
	}
	ok(t, p.Deactivate(ctx, base.LV))
}
