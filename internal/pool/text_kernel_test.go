//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestRoomForText_fullArea: with a small metadata area full of volumes without
// extents, snapshots of other volumes still grow and deletes are recorded. A disk with
// a larger area helps. One snapshot has at most MostReaders readers.
func TestRoomForText_fullArea(t *testing.T) {
	ctx := context.Background()
	const group = "vgtestmetadatareserve"
	var disks []string
	p := testPool(t, func(c *Config) {
		disks = testDisks(t)
		lvm(t, "vgcreate", "-qq", "--dataalignment", "64k", "--metadatasize", "32k", group, disks[0])
		c.Devices, c.Create, c.VolumeGroup, c.BurstRate = nil, false, group, 50*size.MiB
	})
	m := p.metadata(must(p.latest())(t))
	if m.Size == 0 || m.Size > 100*size.KiB || m.Reserved != m.Size/textReserve {
		t.Fatalf("the metadata area is %+v", m)
	}
	victim := must(p.CreateVolume(ctx, VolumeSpec{Name: "victim", Size: 64 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, victim.LV))(t)
	must(p.CreateSnapshot(ctx, "kept", victim.LV))(t)
	first := must(p.latest())(t).VolumeByLV(victim.LV).Live().LV.Size()

	var err error
	n := 0
	reader := func(i int) error {
		_, err := p.CreateVolume(ctx, VolumeSpec{Name: fmt.Sprint("reader", i), Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: "kept"}})
		return err
	}
	for ; err == nil && n < 200; n++ {
		err = reader(n)
	}
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "metadata area") || !strings.Contains(err.Error(), "larger") || n < 20 {
		t.Fatalf("after %d read-only volumes: %v", n, err)
	}
	for what, err := range map[string]error{
		"a volume": func() error {
			_, err := p.CreateVolume(ctx, VolumeSpec{Name: "more", Mode: Block, Size: 4 * size.MiB})
			return err
		}(),
		"a snapshot":   func() error { _, err := p.CreateSnapshot(ctx, "more", victim.LV); return err }(),
		"an expansion": func() error { _, err := p.ExpandVolume(ctx, victim.LV, 72*size.MiB, 0); return err }(),
	} {
		if !errors.Is(err, ErrNoSpace) {
			t.Errorf("%s in a full metadata area returned %v", what, err)
		}
	}
	if c := must(p.Capacity(ctx))(t); c.Free != 0 || c.MaxVolume != 0 || c.Total == 0 {
		t.Errorf("nothing can be made, but the capacity is %+v", c)
	}
	if said := p.PoolHealth(ctx); len(said) == 0 || said[0].Reason != "MetadataFull" {
		t.Errorf("the pool's health is %v, want MetadataFull", said)
	}
	if u := must(p.Usage())(t).Metadata; !u.full() || u.Used > u.Size {
		t.Errorf("the metadata's usage is %+v, want full", u)
	}
	for at := int64(0); at < 48<<20; at += 1 << 20 {
		writeDevice(t, path, at, bytes.Repeat([]byte("v"), 1<<20))
	}
	if s := must(p.Snapshot(ctx, "kept"))(t); s.Lost || must(p.latest())(t).VolumeByLV(victim.LV).Live().LV.Size() <= first {
		t.Errorf("the store of another volume's snapshot did not grow, or the snapshot is lost: %v", s.Lost)
	}
	ok(t, p.DeleteVolume(ctx, "reader0"))
	vgck(t, group)

	lvm(t, "pvcreate", "-qq", "--metadatasize", "8m", disks[1])
	lvm(t, "vgextend", "-qq", group, disks[1])
	lvm(t, "pvchange", "-qq", "--metadataignore", "y", disks[0])
	ok(t, p.refresh(ctx))
	if now := p.metadata(must(p.latest())(t)); now.Size < 10*m.Size || now.full() {
		t.Errorf("with a larger area, the metadata is %+v", now)
	}
	// The number of readers of one snapshot has its own limit.
	for err = nil; err == nil && n < 200; n++ {
		err = reader(n)
	}
	if shown := len(must(p.Volumes(ctx))(t)) - 1; !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "read-only") || shown != catalog.MostReaders {
		t.Errorf("%d read-only volumes of one snapshot: %v", shown, err)
	}
	vgck(t, group)
	ok(t, p.Deactivate(ctx, victim.LV))
}
