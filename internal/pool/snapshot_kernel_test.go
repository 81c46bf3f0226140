//go:build kernel

package pool

import (
	"context"
	"os"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestDeleteSnapshot_openDeviceFreesName: a snapshot with an open device is deleted
// immediately, and its name can be used again.
func TestDeleteSnapshot_openDeviceFreesName(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: Block}))(t)
	must(p.Activate(ctx, v.LV))(t)
	must(p.CreateSnapshot(ctx, "snap1", v.LV))(t)
	f := must(os.Open(p.dm.Node(p.vgName + "-snap1")))(t)
	ok(t, p.DeleteSnapshot(ctx, "snap1"))
	must(p.CreateSnapshot(ctx, "snap1", v.LV))(t)
	f.Close()
	waitIdle(t, p)
	if n := len(settledTo(t, p, 4)); n != 4 {
		t.Errorf("after the deleted snapshot was closed, the devices are %v", devicesOf(t, p))
	}
	ok(t, p.Deactivate(ctx, v.LV))
}
