//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestLoss_fullStoreInFullPool: if a store and the pool are full, writes to the volume
// continue, and the snapshot and older ones are reported lost, permanently.
func TestLoss_fullStoreInFullPool(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.FirstStore = 4 * size.MiB })
	fill := must(p.Capacity(ctx))(t).MaxVolume - 64*size.MiB
	must(p.CreateVolume(ctx, VolumeSpec{Name: "fill", Size: fill, Mode: Block}))(t)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 64 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	must(p.CreateSnapshot(ctx, "older", v.LV))(t)
	writeDevice(t, path, 0, bytes.Repeat([]byte{1}, 4096))
	must(p.CreateSnapshot(ctx, "newer", v.LV))(t)
	for i := range int64(16) {
		writeDevice(t, path, i<<22, bytes.Repeat([]byte{byte(i + 2)}, 1<<22))
	}
	for deadline := time.Now().Add(20 * time.Second); !must(p.Snapshot(ctx, "older"))(t).Lost; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the loss was not recorded")
		}
	}
	if got := readDevice(t, path, v.Size)[v.Size-1]; got != 17 {
		t.Errorf("the volume's last byte is %d, want 17", got)
	}
	if h := must(p.Health(ctx, v.LV))(t); len(h) != 2 || h[0].Reason != "SnapshotLost" {
		t.Errorf("the volume's health is %v, want two concerns, SnapshotLost first", h)
	}
	ok(t, p.Deactivate(ctx, v.LV))
	ok(t, p.Close())
	p = openPool(t, p.config)
	for _, s := range must(p.Snapshots(ctx))(t) {
		if !s.Lost {
			t.Errorf("after a restart, snapshot %s is not lost", s.LV)
		}
		if _, err := p.CreateVolume(ctx, VolumeSpec{Name: "r", Mode: Block, Source: Source{Kind: FromSnapshot, LV: s.LV}}); !errors.Is(err, ErrLost) {
			t.Errorf("restoring the lost snapshot %s returned %v", s.LV, err)
		}
	}
	path = must(p.Activate(ctx, v.LV))(t)
	ok(t, p.DeleteSnapshot(ctx, "older"))
	ok(t, p.DeleteSnapshot(ctx, "newer"))
	waitIdle(t, p)
	s := must(p.CreateSnapshot(ctx, "again", v.LV))(t)
	writeDevice(t, path, 0, make([]byte, 4096))
	if s.Lost || must(p.Snapshot(ctx, "again"))(t).Lost {
		t.Error("a new snapshot is lost too")
	}
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestLoss_beforeTheNextCut: a store that overflows directly before the next cut, or
// before the volume is deactivated, is recorded as lost.
func TestLoss_beforeTheNextCut(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	for _, then := range []string{"cut", "deactivate"} {
		v := must(p.CreateVolume(ctx, VolumeSpec{Name: then, Size: 64 * size.MiB, Mode: Block}))(t)
		path := must(p.Activate(ctx, v.LV))(t)
		s := must(p.CreateSnapshot(ctx, "snap-of-"+then, v.LV))(t)
		inTime := late(t, p, v.LV)
		overrun(t, path)
		if then == "cut" {
			must(p.CreateSnapshot(ctx, "after-"+then, v.LV))(t)
		} else {
			ok(t, p.Deactivate(ctx, v.LV))
		}
		inTime()
		if s := must(p.Snapshot(ctx, s.LV))(t); !s.Lost {
			t.Errorf("%s: the loss is not recorded: %+v", then, s)
		}
		ok(t, p.Deactivate(ctx, v.LV))
	}
}

// TestLoss_whileRestoring: a restore of a snapshot whose loss is not recorded yet fails
// with ErrLost and leaves no volume.
func TestLoss_whileRestoring(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	s := must(p.CreateSnapshot(ctx, "snap1", v.LV))(t)
	late(t, p, v.LV)
	overrun(t, path)
	if _, err := p.CreateVolume(ctx, VolumeSpec{Name: "r", Mode: Block, Source: Source{Kind: FromSnapshot, LV: s.LV}}); !errors.Is(err, ErrLost) {
		t.Errorf("the restore returned %v, want ErrLost", err)
	}
	waitIdle(t, p)
	if lv := must(p.latest())(t).VG.LV("r"); lv != nil {
		t.Errorf("the unfinished volume stays: %v", lv.Tags)
	}
	ok(t, p.Deactivate(ctx, v.LV))
}
