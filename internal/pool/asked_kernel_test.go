//go:build kernel

package pool

import (
	"context"
	"errors"
	"os/exec"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestAsked_survivesRestartExpandRollback: the size in a volume's request is known for
// its snapshots after a restart, an expansion and a rollback. Without the record, as
// from an older release, a copy may ask for a size that is rounded up to its source's.
func TestAsked_survivesRestartExpandRollback(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	const first, second = 30e6, 50e6 // 32 MiB, 48 MiB
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: first, Mode: Block}))(t)
	asked := func(snapshot string, want, length size.Bytes) {
		t.Helper()
		s := must(p.SnapshotNamed(ctx, snapshot))(t)
		if s.Asked != want || s.Size != length {
			t.Errorf("%s: %d bytes were requested, and it has %d; want %d and %d", snapshot, s.Asked, s.Size, want, length)
		}
	}
	must(p.CreateSnapshot(ctx, "one", v.LV))(t)
	must(p.ExpandVolume(ctx, v.LV, first+1, 0))(t) // it already has this size
	must(p.CreateSnapshot(ctx, "same", v.LV))(t)
	must(p.ExpandVolume(ctx, v.LV, second, 0))(t)
	must(p.CreateSnapshot(ctx, "two", v.LV))(t)
	check := func() {
		t.Helper()
		asked("one", first, 32*size.MiB)
		asked("same", first, 32*size.MiB)
		asked("two", second, 48*size.MiB)
	}
	check()
	config := p.config
	ok(t, p.Close())
	p = openPool(t, config)
	check()
	rollBack(t, p, v.LV, must(p.SnapshotNamed(ctx, "one"))(t).LV)
	must(p.CreateSnapshot(ctx, "back", v.LV))(t)
	check()
	asked("back", second, 48*size.MiB)

	// A volume as an older release made it.
	old := must(p.CreateVolume(ctx, VolumeSpec{Name: "old", Size: first, Mode: Block}))(t)
	if out, err := exec.Command("lvchange", "--deltag", "dmsnap:asked=30000000", p.vgName+"/old").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ok(t, p.refresh(ctx))
	must(p.CreateVolume(ctx, VolumeSpec{Name: "old", Size: first, Mode: Block}))(t) // the same request again
	ofOld := must(p.CreateSnapshot(ctx, "of-old", old.LV))(t)
	asked("of-old", 32*size.MiB, 32*size.MiB)
	for i, from := range []Source{{Kind: FromVolume, LV: old.LV}, {Kind: FromSnapshot, LV: ofOld.LV}} {
		c := must(p.CreateVolume(ctx, VolumeSpec{Name: "copy" + string(rune('0'+i)), Size: first, Mode: Block, Source: from}))(t)
		if c.Size != old.Size {
			t.Errorf("a copy of %v has %v", from, c.Size)
		}
		if _, err := p.CreateVolume(ctx, VolumeSpec{Name: "less", Size: 28 * size.MiB, Mode: Block, Source: from}); !errors.Is(err, ErrOutOfRange) {
			t.Errorf("a copy that is smaller than %v: %v", from, err)
		}
	}
}

// TestAsked_copyToAnotherPool: a request for the same size is enough for a copy into
// another pool, even one with larger extents.
func TestAsked_copyToAnotherPool(t *testing.T) {
	ctx := context.Background()
	_, open := twoPools(t, func(_, to *Config) {
		lvm(t, "vgcreate", "-qq", "-s", "16m", to.VolumeGroup, to.Devices[0])
		to.Create = false
	})
	from, to := open()
	const asked = 30e6
	v := must(from.CreateVolume(ctx, VolumeSpec{Name: "base", Size: asked, Mode: Block}))(t)
	s := must(from.CreateSnapshot(ctx, "snapshot", v.LV))(t)
	for i, source := range []Source{{Kind: FromVolume, LV: v.LV}, {Kind: FromSnapshot, LV: s.LV}} {
		spec := VolumeSpec{Name: "copy" + string(rune('0'+i)), Size: asked, Mode: Block, Source: source}
		c := copied(t, to, spec, from)
		if c.Size != 32*size.MiB || copied(t, to, spec, from) != c {
			t.Errorf("the copy of %v is %+v", source, c)
		}
		if again := must(to.CreateSnapshot(ctx, spec.Name, c.LV))(t); again.Asked != asked {
			t.Errorf("the requested size of a snapshot of %v is %d", c, again.Asked)
		}
	}
}
