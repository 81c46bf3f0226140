//go:build kernel

package pool

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestIsRight_deviations: the repair leaves a volume alone only if its devices are as the
// metadata says, run, and have no second table.
func TestIsRight_deviations(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.NoFolding = true })
	lv := must(p.CreateVolume(ctx, VolumeSpec{Name: "vol", Size: 16 * size.MiB, Mode: Block}))(t).LV
	must(p.Activate(ctx, lv))(t)
	must(p.CreateSnapshot(ctx, "s1", lv))(t)
	must(p.CreateSnapshot(ctx, "s2", lv))(t)
	release := must(p.lock(ctx, lvKey(lv)))(t) // the caretaker would bring the devices in line
	v := must(p.latest())(t)
	o := v.VolumeByLV(lv)
	expect := func(what string, want bool) {
		t.Helper()
		k := p.lookAtPlain(ctx, must(p.dm.List())(t))[lv]
		if got := p.isRight(ctx, must(p.latest())(t), []lvm2.ID{o.LV.ID}, k); got != want {
			t.Errorf("%s: right %v, and it should be %v", what, got, want)
		}
	}
	top, real, snap := v.topDevice(o.LV).name, v.realDevice(o.LV).name, v.snapDevice(o.Live().LV).name
	expect("after two cuts", true)
	for _, name := range []string{top, real, snap} {
		ok(t, p.dm.Load(name, must(p.dm.Table(name))(t), false))
		expect(name+" has a second table", false)
		ok(t, p.dm.Clear(name))
		ok(t, p.dm.Suspend(ctx, name, dm.SuspendOptions{SkipLockFS: true}))
		expect(name+" is suspended", false)
		ok(t, p.dm.Resume(name, 0))
	}
	expect("as before", true)
	table := must(p.dm.Table(real))(t)
	wrong := append(dm.Table{{Length: 8, Target: dm.Zero{}}}, cutTable(table, 8, table.Length())...)
	for _, x := range []dm.Table{wrong, table} {
		ok(t, p.dm.Load(real, x, false))
		ok(t, p.dm.Resume(real, 0))
		expect("the blocks have the table "+x.String(), &x[0] == &table[0])
	}
	ok(t, p.do(ctx, &change{what: "cut without devices", edit: func(t *edit) error {
		_, err := p.cut(t, t.VolumeByLV(lv), "s3")
		return err
	}}))
	expect("the metadata is ahead", false)
	release()
	ok(t, p.onVolume(ctx, lv, func(ctx context.Context) error { return p.settleAgain(ctx, lv) }))
	ok(t, p.Deactivate(ctx, lv))
}

// TestLeftover_open: a device that nobody needs any more goes when its last user closes it,
// although no operation on its volume follows. A driver that starts meanwhile also waits
// for that user.
func TestLeftover_open(t *testing.T) {
	for name, restart := range map[string]bool{"same driver": false, "next driver": true} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			p := testPool(t, func(c *Config) { c.NoFolding = true })
			lv := must(p.CreateVolume(ctx, VolumeSpec{Name: "vol", Size: 16 * size.MiB, Mode: Block}))(t).LV
			must(p.Activate(ctx, lv))(t)
			must(p.CreateSnapshot(ctx, "s", lv))(t)
			real := must(p.latest())(t).realDevice(must(p.latest())(t).VolumeByLV(lv).LV)
			user := must(os.Open(p.dm.Node(real.name)))(t)
			ok(t, p.DeleteSnapshot(ctx, "s"))
			if restart {
				config := p.config
				ok(t, p.Close())
				p = openPool(t, config)
				defer func() { ok(t, p.Close()) }()
			}
			time.Sleep(2 * careLook)
			if must(p.find(real))(t) == nil {
				t.Fatal("the open device is gone, so this test proves nothing")
			}
			ok(t, user.Close())
			for end := time.Now().Add(20 * time.Second); must(p.find(real))(t) != nil; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%s stays", real.name)
				}
			}
			ok(t, p.Deactivate(ctx, lv))
			ok(t, p.DeleteVolume(ctx, lv))
		})
	}
}
