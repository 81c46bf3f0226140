//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

func reasons(c []Condition) string {
	var out []string
	for _, x := range c {
		out = append(out, x.Reason)
	}
	return strings.Join(out, " ")
}

// TestScratch_untilDeviceIsLost: a transient volume can be written completely, keeps
// the writes as long as its device exists, and afterwards has its snapshot's content
// again.
func TestScratch_untilDeviceIsLost(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	r := rand.New(rand.NewPCG(7, 8))
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 16 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	base := make(content, v.Size)
	base.scribble(t, r, path, 100)
	must(p.CreateSnapshot(ctx, "s1", v.LV))(t)
	cut := content(bytes.Clone(base))
	base.scribble(t, r, path, 50)

	spec := VolumeSpec{Name: "scratch", Mode: Block, Transient: true, Source: Source{Kind: FromSnapshot, LV: "s1"}}
	made := must(p.CreateVolume(ctx, spec))(t)
	if again := must(p.CreateVolume(ctx, spec))(t); again != made || !made.Transient || made.Size != v.Size {
		t.Errorf("the volume is %+v, and by a repeated request %+v", made, again)
	}
	for what, c := range map[string]struct {
		spec VolumeSpec
		want error
	}{
		"same name, not transient":     {VolumeSpec{Name: "scratch", Mode: Block, Source: spec.Source}, ErrConflict},
		"without a source":             {VolumeSpec{Name: "x", Mode: Block, Transient: true}, ErrInvalid},
		"also read-only":               {VolumeSpec{Name: "x", Mode: Block, Transient: true, ReadOnly: true, Source: spec.Source}, ErrInvalid},
		"larger than its snapshot":     {VolumeSpec{Name: "x", Size: v.Size + 1, Mode: Block, Transient: true, Source: spec.Source}, ErrOutOfRange},
		"clone of it":                  {VolumeSpec{Name: "x", Mode: Block, Source: Source{Kind: FromVolume, LV: made.LV}}, ErrPrecondition},
		"transient volume of its data": {VolumeSpec{Name: "x", Mode: Block, Transient: true, Source: Source{Kind: FromVolume, LV: made.LV}}, ErrPrecondition},
	} {
		if _, err := p.CreateVolume(ctx, c.spec); !errors.Is(err, c.want) {
			t.Errorf("%s: CreateVolume returned %v, want %v", what, err, c.want)
		}
	}
	if err := second(p.CreateSnapshot(ctx, "x", made.LV)); !errors.Is(err, ErrPrecondition) {
		t.Errorf("a snapshot of a transient volume returned %v", err)
	}
	if err := second(p.ExpandVolume(ctx, made.LV, v.Size+1, 0)); !errors.Is(err, ErrPrecondition) {
		t.Errorf("an expansion of a transient volume returned %v", err)
	}

	scratch := must(p.Activate(ctx, made.LV))(t)
	mine := content(bytes.Clone(cut))
	mine.compare(t, scratch, "fresh")
	mine.scribble(t, r, scratch, 50)
	base.scribble(t, r, path, 20)
	mine.compare(t, scratch, "written")
	must(p.CreateSnapshot(ctx, "s2", v.LV))(t)
	ok(t, p.DeleteSnapshot(ctx, "s1"))
	base.scribble(t, r, path, 20)
	noFindings(t, p)
	mine.compare(t, scratch, "after another cut")

	// Through an unstage and a restart of the driver, it keeps its writes.
	ok(t, p.Deactivate(ctx, made.LV))
	config := p.config
	ok(t, p.Close())
	p = openPool(t, config)
	scratch = must(p.Activate(ctx, made.LV))(t)
	mine.compare(t, scratch, "after a restart of the driver")
	// Write everywhere: a store for as many chunks as the volume has is never full.
	for at := 0; at < len(mine); at += 1 << 20 {
		part := mine[at:min(len(mine), at+1<<20)]
		for i := range part {
			part[i] = byte(at>>20 + i)
		}
		writeDevice(t, scratch, int64(at), part)
	}
	mine.compare(t, scratch, "written everywhere")
	if s := must(p.snapshotStatus(must(p.latest())(t).topDevice(must(p.latest())(t).VolumeByLV(made.LV).LV).name))(t); s.Invalid || s.Used != s.Total {
		t.Errorf("after writes everywhere, the status of the store is %v", s)
	}
	if c := must(p.Health(ctx, made.LV))(t); len(c) != 0 {
		t.Errorf("the health of the written volume is %v", c)
	}
	quiet(t, "vgck "+p.vgName)
	quiet(t, "vgchange -ay "+p.vgName)
	mine.compare(t, scratch, "after vgchange -ay")

	// All devices are removed, as in a reboot.
	ok(t, p.Deactivate(ctx, made.LV))
	ok(t, p.deactivate(ctx, made.LV))
	if devices := settledTo(t, p, 4); len(devices) != 4 {
		t.Errorf("without the transient volume the devices are %v", devices)
	}
	// The driver is killed while it activates the volume.
	now := must(p.latest())(t)
	o := now.VolumeByLV(made.LV)
	f := must(p.openDevice(ctx, now, now.cowDevice(o.LV), must(now.linearTable(o.LV))(t)))(t)
	ok(t, f.Close())
	config = p.config
	ok(t, p.Close())
	p = openPool(t, config)
	if devices := settledTo(t, p, 4); len(devices) != 4 {
		t.Errorf("after an interrupted activation the devices are %v", devices)
	}
	scratch = must(p.Activate(ctx, made.LV))(t)
	cut.compare(t, scratch, "started over")
	if c := must(p.Health(ctx, made.LV))(t); reasons(c) != "TransientRestarted" {
		t.Errorf("the health of the volume that started over is %v, want TransientRestarted", c)
	}
	must(p.Activate(ctx, made.LV))(t)
	ok(t, p.Deactivate(ctx, made.LV))
	if c := must(p.Health(ctx, made.LV))(t); len(c) != 0 {
		t.Errorf("the health after that use is %v", c)
	}
	ok(t, p.Deactivate(ctx, v.LV))
	ok(t, p.DeleteVolume(ctx, v.LV))
	ok(t, p.DeleteSnapshot(ctx, "s2"))
	cut.compare(t, scratch, "without its source")
	noFindings(t, p)
	ok(t, p.DeleteVolume(ctx, made.LV))
	waitIdle(t, p)
	if left := settledTo(t, p, 0); len(left) != 0 {
		t.Errorf("devices are left: %v", left)
	}
	if n := len(must(p.latest())(t).VG.LVs); n != 0 {
		t.Errorf("%d logical volumes are left", n)
	}
}
