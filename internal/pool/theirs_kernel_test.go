//go:build kernel

package pool

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// pvmove makes lvm2 begin to move a logical volume. begun is false if lvm2 refuses. end
// ends the move.
func pvmove(t *testing.T, p *Pool, disks []string, lv string) (end func(), begun bool) {
	v := must(p.latest())(t)
	from, to := v.VG.PVs[must(catalog.Physical(v.VG.LV(lv)))(t)[0].PV].Device, disks[0]
	if from == to {
		to = disks[1]
	}
	c := exec.Command("pvmove", "-i", "+60", "-n", lv, from, to)
	ok(t, c.Start())
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		ok(t, p.refresh(context.Background()))
		if v := must(p.latest())(t); v.VG.LV("pvmove0") != nil {
			break
		}
		select {
		case err := <-ended:
			t.Logf("pvmove of %s: %v", lv, err)
			return func() {}, false
		default:
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatal("pvmove did not begin within 20 s")
		}
	}
	return func() {
		lvm(t, "pvmove", "--abort", "-qq")
		c.Process.Kill()
		<-ended
	}, true
}

// mirror makes lvm2 convert a logical volume to a mirror. begun is false if lvm2 refuses.
// end makes the logical volume linear again.
func mirror(t *testing.T, p *Pool, disks []string, lv string) (end func(), begun bool) {
	out, err := exec.Command("lvconvert", "-y", "-qq", "--type", "mirror", "--mirrorlog", "core", "-m", "1", p.vgName+"/"+lv).CombinedOutput()
	if err != nil {
		t.Logf("lvconvert of %s: %v\n%s", lv, err, out)
		return func() {}, false
	}
	return func() { lvm(t, "lvconvert", "-y", "-qq", "-m", "0", p.vgName+"/"+lv) }, true
}

// TestTheirs_lvm2AtWork: while lvm2 moves or converts a volume, a store, a fork or
// trash, each operation works or fails with ErrPrecondition. All operations work
// afterwards.
func TestTheirs_lvm2AtWork(t *testing.T) {
	for _, what := range []string{"base", "s2", "fork", "trash"} {
		t.Run("pvmove/"+what, func(t *testing.T) { underLVM2(t, pvmove, what) })
	}
	t.Run("mirror/s1", func(t *testing.T) { underLVM2(t, mirror, "s1") })
}

func underLVM2(t *testing.T, begin func(*testing.T, *Pool, []string, string) (func(), bool), what string) {
	ctx := context.Background()
	disks := testDisks(t)[:2]
	p := testPool(t, func(c *Config) { c.Devices, c.HydrationRate = disks, size.MiB })
	r := rand.New(rand.NewPCG(21, 22))
	base := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 16 * size.MiB, Mode: Block}))(t)
	path := must(p.Activate(ctx, base.LV))(t)
	model := make(content, base.Size)
	for _, s := range []string{"s1", "s2"} {
		model.scribble(t, r, path, 20)
		must(p.CreateSnapshot(ctx, s, base.LV))(t)
	}
	shown := append(content(nil), model...)
	model.scribble(t, r, path, 20)
	fork := must(p.CreateVolume(ctx, VolumeSpec{Name: "fork", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "s2"}}))(t)
	at := must(p.Activate(ctx, fork.LV))(t)
	shown.scribble(t, r, at, 20)
	lv, letGo := what, func() {}
	if what == "trash" {
		lv, letGo = trashOf(t, p)
	}
	end, begun := begin(t, p, disks, lv)
	if begun {
		type op struct {
			name string
			f    func() error
		}
		for _, o := range []op{
			{"snapshot", func() error { _, err := p.CreateSnapshot(ctx, "during", base.LV); return err }},
			{"snapshot fork", func() error { _, err := p.CreateSnapshot(ctx, "forkduring", fork.LV); return err }},
			{"restore", func() error {
				_, err := p.CreateVolume(ctx, VolumeSpec{Name: "r", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "s1"}})
				return err
			}},
			{"clone", func() error {
				_, err := p.CreateVolume(ctx, VolumeSpec{Name: "c", Mode: Block, Source: Source{Kind: FromVolume, LV: base.LV}})
				return err
			}},
			{"expand", func() error { _, err := p.ExpandVolume(ctx, base.LV, 24*size.MiB, 0); return err }},
			{"expand fork", func() error { _, err := p.ExpandVolume(ctx, fork.LV, 24*size.MiB, 0); return err }},
			{"activate", func() error { _, err := p.Activate(ctx, base.LV); return err }},
			{"hydrate", func() error {
				return p.hydrator.flush(fork.LV, &window{layerWindow0, catalog.Span{Start: 0, Length: 2048}})
			}},
			{"trim", func() error { return p.trim(ctx, base.LV) }},
			{"health", func() error { _, err := p.Health(ctx, fork.LV); return err }},
			{"delete", func() error { return p.DeleteSnapshot(ctx, "s1") }},
		} {
			if err := o.f(); err != nil && !errors.Is(err, ErrPrecondition) {
				t.Errorf("%s while lvm2 is at work on %s: %v", o.name, what, err)
			}
		}
	}
	end()
	letGo()
	ok(t, p.refresh(ctx))
	eventually := func(what string, f func() error) {
		t.Helper()
		for end := time.Now().Add(15 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			err := f()
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s, afterwards: %v", what, err)
			}
		}
	}
	eventually("snapshot", func() error { _, err := p.CreateSnapshot(ctx, "after", base.LV); return err })
	eventually("clone", func() error {
		_, err := p.CreateVolume(ctx, VolumeSpec{Name: "c2", Mode: Block, Source: Source{Kind: FromVolume, LV: fork.LV}})
		return err
	})
	must(p.ExpandVolume(ctx, base.LV, 32*size.MiB, 0))(t)
	model.compare(t, path, "the volume")
	shown.compare(t, at, "the fork")
	for _, v := range must(p.Volumes(ctx))(t) {
		ok(t, p.Deactivate(ctx, v.LV))
		ok(t, p.DeleteVolume(ctx, v.LV))
	}
	for _, s := range must(p.Snapshots(ctx))(t) {
		ok(t, p.DeleteSnapshot(ctx, s.LV))
	}
	waitIdle(t, p)
}

// trashOf makes a piece of trash that is not wiped, because its device is open, and
// returns its name. letGo closes the device.
func trashOf(t *testing.T, p *Pool) (lv string, letGo func()) {
	t.Helper()
	ctx := context.Background()
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "gone", Size: 16 * size.MiB, Mode: Block}))(t)
	id := must(p.latest())(t).VG.LV(v.LV).ID
	// The open file keeps the trash from being wiped.
	f := must(os.Open(must(p.Activate(ctx, v.LV))(t)))(t)
	ok(t, p.do(ctx, &change{what: "delete an open volume", edit: func(t *edit) error { return t.DeleteVolume(t.Volumes.Get(id)) }}))
	return catalog.TrashName(id), func() { f.Close() }
}
