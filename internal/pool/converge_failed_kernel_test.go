//go:build kernel

package pool

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestLetUsersGo_failedConvergence: a convergence that cannot finish still resumes
// each volume's users: if a loss cannot be recorded, and if a foreign device has a
// device's name.
func TestLetUsersGo_failedConvergence(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.HydrationRate = 4 * size.MiB })
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 32 * size.MiB, Mode: Block}))(t)
	writeDevice(t, must(p.Activate(ctx, v.LV))(t), 0, make([]byte, 4096))
	must(p.CreateSnapshot(ctx, "s1", v.LV))(t)
	f := must(p.CreateVolume(ctx, VolumeSpec{Name: "f", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "s1"}}))(t)
	must(p.Activate(ctx, f.LV))(t)
	must(p.CreateSnapshot(ctx, "s2", f.LV))(t)
	suspended := func(lv string) bool {
		t.Helper()
		return must(p.dm.Info(p.vgName + "-" + lv))(t).Suspended
	}

	// A foreign device has the name of a device that a cut needs.
	release := must(p.keys.lock(ctx, lvKey(v.LV)))(t)
	must(p.dm.Create(p.vgName+"-s3-cow", "a-stranger"))(t)
	ok(t, p.do(ctx, &change{what: "a cut without its devices", edit: func(e *edit) error {
		_, err := p.cut(e, e.VolumeByLV(v.LV), "s3")
		return err
	}}))
	ok(t, p.dm.Suspend(ctx, p.vgName+"-"+v.LV, dm.SuspendOptions{SkipLockFS: true}))
	if err := p.converge(ctx, must(p.latest())(t), v.LV); !errors.Is(err, dm.ErrExists) {
		t.Errorf("with the name taken, converge returned %v, want dm.ErrExists", err)
	}
	if suspended(v.LV) {
		t.Error("the volume is still suspended because a foreign device has the name")
		ok(t, p.dm.Resume(p.vgName+"-"+v.LV, 0))
	}
	ok(t, p.dm.Remove(p.vgName+"-s3-cow", 0))
	ok(t, p.converge(ctx, must(p.latest())(t), v.LV))
	release()

	// The loss of the fork's snapshot cannot be recorded: the pool is being closed.
	id := must(p.latest())(t).VG.LV(f.LV).ID
	var w *window
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		release = must(p.keys.lock(ctx, lvKey(v.LV)))(t)
		if w = p.hydrator.window(id); w != nil && !must(p.latest())(t).Volumes.Get(id).Hydrated.Has(w.Span) {
			break
		}
		release()
		if time.Now().After(end) {
			t.Fatal("no window was hydrated within 20 s")
		}
	}
	p.cancel()
	<-p.stopped
	p.work.Wait()
	mirror := p.vgName + "-f-" + w.layer
	p.hydrator.setWindow(id, nil)
	lvm(t, "dmsetup", "remove", "--retry", p.vgName+"-s2")
	for _, lv := range []string{f.LV, v.LV} {
		ok(t, p.dm.Suspend(ctx, p.vgName+"-"+lv, dm.SuspendOptions{SkipLockFS: true}))
	}
	err := p.converge(ctx, must(p.latest())(t), f.LV)
	if !errors.Is(err, ErrUnavailable) || must(p.latest())(t).SnapshotByLV("s2").Lost {
		t.Errorf("the loss was recorded or not found: %v", err)
	}
	for _, lv := range []string{f.LV, v.LV} {
		if suspended(lv) {
			t.Errorf("%s is still suspended because the loss is not recorded", lv)
			ok(t, p.dm.Resume(p.vgName+"-"+lv, 0))
		}
	}
	if table := must(p.dm.Table(mirror))(t); len(table) == 1 {
		if _, is := table[0].Target.(dm.Mirror); is {
			t.Error("writes still go to the mirror of an abandoned window")
		}
	}
	release()
	config := p.config
	ok(t, p.Close())
	p = openPool(t, config)
	waitHydrated(t, p, f.LV)
	if !must(p.Snapshot(ctx, "s2"))(t).Lost {
		t.Error("the next process did not record the loss")
	}
	ok(t, p.Deactivate(ctx, f.LV))
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestDo_lossesFoundByConvergence: the convergences of an act record the losses that
// they find, of several volumes, and the act runs only once.
func TestDo_lossesFoundByConvergence(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	volumes := []string{"v1", "v2"}
	for _, v := range volumes {
		must(p.CreateVolume(ctx, VolumeSpec{Name: v, Size: 16 * size.MiB, Mode: Block}))(t)
		must(p.Activate(ctx, v))(t)
		must(p.CreateSnapshot(ctx, "of-"+v, v))(t)
		defer must(p.keys.lock(ctx, lvKey(v)))(t)()
	}
	acts := 0
	err := p.do(ctx, &change{what: "look after both", act: func(ctx context.Context, now *view) error {
		if acts++; acts == 1 {
			for _, v := range volumes {
				lvm(t, "dmsetup", "remove", "--retry", p.vgName+"-of--"+v)
			}
		}
		return errors.Join(p.converge(ctx, now, volumes[0]), p.converge(ctx, now, volumes[1]))
	}})
	if err != nil || acts != 1 {
		t.Errorf("the act ran %d times: %v", acts, err)
	}
	for _, v := range volumes {
		if !must(p.Snapshot(ctx, "of-"+v))(t).Lost {
			t.Errorf("the loss of the snapshot of %s is not recorded", v)
		}
	}
	for _, v := range volumes {
		ok(t, p.deactivate(ctx, v))
	}
}

// TestDo_lossFoundByAct: a change whose act finds a loss is not repeated, because its
// edit is on the disk. The loss is recorded.
func TestDo_lossFoundByAct(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 16 * size.MiB, Mode: Block}))(t)
	must(p.Activate(ctx, v.LV))(t)
	must(p.CreateSnapshot(ctx, "s", v.LV))(t)
	edits := 0
	err := p.do(ctx, &change{what: "extend it", edit: func(t *edit) error {
		edits++
		return t.Put(t.VG.LV(v.LV).Clone())
	}, act: func(_ context.Context, now *view) error {
		return &unrecordedLoss{layer: now.SnapshotByLV("s").LV.ID}
	}})
	if edits != 1 || !errors.Is(err, ErrLost) {
		t.Errorf("the edit ran %d times: %v", edits, err)
	}
	if !must(p.Snapshot(ctx, "s"))(t).Lost {
		t.Error("the loss is not recorded")
	}
	ok(t, p.Deactivate(ctx, v.LV))
}

// TestFrozen_resumesWithOldTable: a volume that was frozen for a failed cut is resumed
// with its old table, not with a table loaded meanwhile.
func TestFrozen_resumesWithOldTable(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 16 * size.MiB, Mode: Block}))(t)
	must(p.Activate(ctx, v.LV))(t)
	defer must(p.keys.lock(ctx, lvKey(v.LV)))(t)()
	name := p.vgName + "-" + v.LV
	had := must(p.dm.Table(name))(t)
	same := func(when string) {
		t.Helper()
		if info := must(p.dm.Info(name))(t); info.Loaded || info.Suspended {
			t.Errorf("%s: %+v", when, info)
		}
		if has := must(p.dm.Table(name))(t); !has.Equal(had) {
			t.Errorf("%s, the volume has the table %v", when, has)
			ok(t, p.dm.Load(name, had, false))
			ok(t, p.dm.Resume(name, 0))
		}
	}
	loaded := whole(had.Length(), dm.ErrorTarget{})
	f := must(p.freeze(ctx, v.LV))(t)
	ok(t, p.dm.Load(name, loaded, false))
	f.release()
	same("after a cut that failed")
	ok(t, p.dm.Suspend(ctx, name, dm.SuspendOptions{}))
	ok(t, p.dm.Load(name, loaded, false))
	must(p.freeze(ctx, v.LV))(t).release()
	same("after a freeze that a former process left")
}
