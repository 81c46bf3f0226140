//go:build kernel

package pool

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestWiper_badSector: trash that cannot be wiped does not keep other trash from being
// wiped, and is reported.
func TestWiper_badSector(t *testing.T) {
	ctx := context.Background()
	disk := testDisks(t)[0]
	client := must(dm.Open())(t)
	defer client.Close()
	under := must(dm.DeviceOf(disk))(t)
	const length = 1000000
	good := func(from, to size.Sectors) dm.Segment {
		return dm.Segment{Start: from, Length: to - from, Target: dm.Linear{Device: under, Offset: from}}
	}
	info := must(client.Create("baddisk", ""))(t)
	ok(t, client.Load("baddisk", dm.Table{good(0, length)}, false))
	ok(t, client.Resume("baddisk", 0))
	t.Cleanup(func() { lvm(t, "dmsetup", "remove", "--retry", "baddisk") })
	path := must(client.EnsureNode(ctx, "baddisk", info.Device))(t)
	p := openPool(t, Config{Name: "pool", VolumeGroup: "vgbad", Devices: []string{path}, Create: true})
	a := must(p.CreateVolume(ctx, VolumeSpec{Name: "a", Size: 16 * size.MiB, Mode: Block}))(t)
	b := must(p.CreateVolume(ctx, VolumeSpec{Name: "b", Size: 16 * size.MiB, Mode: Block}))(t)
	start := must(p.latest())(t).VG.PVs[0].PEStart
	ok(t, client.Load("baddisk", dm.Table{good(0, start), {Start: start, Length: 8, Target: dm.ErrorTarget{}}, good(start+8, length)}, false))
	ok(t, client.Resume("baddisk", 0))
	ok(t, p.DeleteVolume(ctx, a.LV))
	ok(t, p.DeleteVolume(ctx, b.LV))
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		trash, told := must(p.latest())(t).Trash, len(p.PoolHealth(ctx)) > 0
		if len(trash) == 1 && told {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("trash: %d, health: %v", len(trash), p.PoolHealth(ctx))
		}
	}
	ok(t, p.Close())
}

// TestWiper_oneFlush: a round of the wiper flushes the disk once, however many deleted volumes
// it wipes.
func TestWiper_oneFlush(t *testing.T) {
	const volumes = 32
	ctx := context.Background()
	p := testPool(t, nil)
	for i := range volumes {
		must(p.CreateVolume(ctx, VolumeSpec{Name: fmt.Sprintf("v%d", i), Size: 4 * size.MiB, Mode: Block}))(t)
	}
	disk, seqno := p.config.Devices[0], must(p.latest())(t).VG.Seqno
	before := flushes(t, disk)
	for i := range volumes {
		ok(t, p.DeleteVolume(ctx, fmt.Sprintf("v%d", i)))
	}
	waitIdle(t, p)
	commits := int(must(p.latest())(t).VG.Seqno - seqno)
	if extra := flushes(t, disk) - before - 2*commits; extra < 1 || extra >= volumes/2 {
		t.Errorf("%d flushes besides those of %d commits, want one for each round", extra, commits)
	}
}
