//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestAdopt_neverActiveSnapshot adopts a snapshot that lvm2 took of an inactive
// volume. The snapshot's store still holds the exceptions of an earlier snapshot.
func TestAdopt_neverActiveSnapshot(t *testing.T) {
	ctx := context.Background()
	p := lvmGroup(t)
	vg := p.config.VolumeGroup
	lvm(t, "lvcreate", "-qq", "-y", "-Wn", "-L16m", "-n", "base", vg)
	h := &past{t: t, p: p, lv: "base", path: p.dm.Node(vg + "-base"), content: make([]byte, 16*size.MiB), want: map[string][]byte{}, random: rand.New(rand.NewPCG(7, 8))}
	writeAll(t, h.path, h.content)
	h.write(40)
	lvm(t, "lvcreate", "-qq", "-y", "-s", "-c", "4k", "-L", "20m", "-n", "old", vg+"/base")
	h.write(200)
	lvm(t, "lvremove", "-qq", "-y", vg+"/old")
	lvm(t, "vgchange", "-qq", "-an", vg)
	h.path = ""
	lvm(t, "lvcreate", "-qq", "-y", "-s", "-c", "4k", "-L", "20m", "-n", "s1", vg+"/base")
	h.want["s1"] = bytes.Clone(h.content)
	lvm(t, "vgchange", "-qq", "-an", vg)
	ok(t, Adopt(ctx, p.config, Options{}, Adoption{LV: "base", Mode: Block}))
	ok(t, p.refresh(ctx))
	h.check("adopted")
	h.activate()
	h.write(40)
	h.check("written to")
	h.remove("s1")
	waitIdle(t, p)
	h.deactivate()
}

// TestAdopt_leftDevice adopts and imports volumes after an interrupted adoption or
// import left a device without a table, or with a table that was never in use.
func TestAdopt_leftDevice(t *testing.T) {
	t.Run("empty", func(t *testing.T) { adoptHalfMade(t, false) })
	t.Run("loaded", func(t *testing.T) { adoptHalfMade(t, true) })
}

func adoptHalfMade(t *testing.T, loaded bool) {
	ctx := context.Background()
	p := lvmGroup(t)
	vg := p.config.VolumeGroup
	lvm(t, "lvcreate", "-qq", "-y", "-Wn", "-L16m", "-n", "base", vg)
	lvm(t, "lvcreate", "-qq", "-y", "-Wn", "-L16m", "-n", "other", vg)
	h := &past{t: t, p: p, lv: "base", path: p.dm.Node(vg + "-base"), content: make([]byte, 16*size.MiB), want: map[string][]byte{}, random: rand.New(rand.NewPCG(3, 4))}
	writeAll(t, h.path, h.content)
	lvm(t, "lvcreate", "-qq", "-y", "-s", "-L", "12m", "-n", "s1", vg+"/base")
	h.want["s1"] = bytes.Clone(h.content)
	h.write(40)
	lvm(t, "vgchange", "-qq", "-an", vg)
	h.path = ""
	ok(t, p.refresh(ctx))
	v := must(p.latest())(t)
	left := map[device]string{v.cowDevice(v.VG.LV("s1")): "s1", v.topDevice(v.VG.LV("other")): "other"}
	for d, lv := range left {
		must(p.dm.Create(d.name, d.uuid))(t)
		if loaded {
			ok(t, p.dm.Load(d.name, must(v.linearTable(v.VG.LV(lv)))(t), true))
		}
	}
	ok(t, Adopt(ctx, p.config, Options{}, Adoption{LV: "base", Mode: Block}))
	must(Import(ctx, p.config, Options{}, ImportSpec{LV: "other", Probe: func(context.Context, string) (Mode, string, error) { return Block, "", nil }}))(t)
	for d := range left {
		if info := must(p.find(d))(t); info != nil {
			t.Errorf("device %s is left: %+v", d.name, info)
		}
	}
	ok(t, p.refresh(ctx))
	h.check("adopted")
}

// TestAdopt_lostStayLost removes, with lvm2, the layer that adopted snapshots read
// through. Neither later cuts nor later adoptions bring the snapshots back.
func TestAdopt_lostStayLost(t *testing.T) {
	ctx := context.Background()
	p := lvmGroup(t)
	vg := p.config.VolumeGroup
	lvm(t, "lvcreate", "-qq", "-y", "-Wn", "-L16m", "-n", "base", vg)
	for _, s := range []string{"s1", "s2"} {
		lvm(t, "lvcreate", "-qq", "-y", "-s", "-L", "8m", "-n", s, vg+"/base")
	}
	adoption := Adoption{LV: "base", Mode: Block}
	ok(t, Adopt(ctx, p.config, Options{}, adoption))
	ok(t, p.refresh(ctx))
	follow(t, p)
	live := func() string { return vg + "/" + must(p.latest())(t).VolumeByLV("base").Live().LV.Name }
	lost := func(when string, names ...string) {
		t.Helper()
		ok(t, p.refresh(ctx))
		for _, name := range names {
			if s, err := p.Snapshot(ctx, name); err != nil || !s.Lost {
				t.Errorf("%s: %s is %+v, %v; must be lost", when, name, s, err)
			}
			_, err := p.CreateVolume(ctx, VolumeSpec{Name: "r" + name, Mode: Block, Source: Source{Kind: FromSnapshot, LV: name}})
			if !errors.Is(err, ErrLost) {
				t.Errorf("%s: restored %s with %v", when, name, err)
			}
		}
	}
	lvm(t, "lvremove", "-qq", "-y", live())
	// LVM2 refuses to remove a frozen layer. An older release of the driver that
	// did not lock the layer may have allowed it.
	ok(t, p.do(ctx, &change{what: "remove a layer", edit: func(e *edit) error { return e.Remove(e.VG.LV("s2").ID) }}))
	ok(t, p.refresh(ctx))
	must(p.CreateSnapshot(ctx, "s3", "base"))(t)
	lost("after a cut", "s1")
	lvm(t, "lvremove", "-qq", "-y", live())
	lvm(t, "lvcreate", "-qq", "-y", "-s", "-L", "8m", "-n", "s4", vg+"/base")
	ok(t, Adopt(ctx, p.config, Options{}, adoption))
	lost("after another adoption", "s1")
	ok(t, p.refresh(ctx))
	if s := must(p.Snapshot(ctx, "s4"))(t); s.Lost {
		t.Errorf("s4 is lost")
	}
}
