//go:build kernel

package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestFreeze_groupLockedByLVM2: while an lvm2 command has the group's lock, a cut does not hold
// the volume. If the command gets the lock after the cut is committed, a volume that is frozen is
// resumed after frozenLimit, and the cut is taken back.
func TestFreeze_groupLockedByLVM2(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	v, _, dir := mountedVolume(t, p, "ext4", 64*size.MiB)
	writes := func(limit time.Duration) {
		t.Helper()
		wrote := make(chan error, 1)
		go func() { wrote <- os.WriteFile(filepath.Join(dir, "x"), []byte("x"), 0o600) }()
		select {
		case err := <-wrote:
			ok(t, err)
		case <-time.After(limit):
			t.Errorf("the volume is suspended for more than %v while the group is locked", limit)
		}
	}
	lock := must(p.host.LockVG(ctx, p.vgName, lvm2.Exclusive))(t)
	cut := make(chan error, 1)
	go func() { cut <- cutNamed(ctx, p, v.LV, "s1") }()
	time.Sleep(500 * time.Millisecond)
	writes(frozenLimit / 2)
	ok(t, lock.Unlock())
	ok(t, <-cut)

	layers := must(p.latest())(t).Layers.Len()
	_, err := run(ctx, &p.group, []string{lvKey(v.LV)}, func(ctx context.Context) (none struct{}, err error) {
		c := halfCut(t, p, v.LV, "s2", true)
		lock := must(p.host.LockVG(ctx, p.vgName, lvm2.Exclusive))(t)
		go func() { cut <- c.cutLate(ctx, nil) }()
		time.Sleep(500 * time.Millisecond)
		writes(3 * frozenLimit)
		ok(t, lock.Unlock())
		if err = <-cut; !errors.Is(err, ErrFreeze) {
			t.Errorf("the cut returned %v, want ErrFreeze", err)
		}
		p.withdraw(ctx, c.done.Layer, v.LV, err)
		return none, nil
	})
	ok(t, err)
	if now := must(p.latest())(t).Layers.Len(); now != layers {
		t.Errorf("after the failed cut there are %d layers, want %d", now, layers)
	}
	must(p.CreateSnapshot(ctx, "s2", v.LV))(t)
}

// TestFreeze_changedMeanwhile: if another process changes the group during a long freeze, the
// window uses no step that was planned before. If another process makes the cut, or resumes the
// volume, the driver makes another cut, because the content would be of another time, or not clean.
func TestFreeze_changedMeanwhile(t *testing.T) {
	for _, what := range []string{"metadata", "devices", "resumed"} {
		for _, snapshots := range []int{0, 1} {
			t.Run(fmt.Sprintf("%s/%d", what, snapshots), func(t *testing.T) { changedMeanwhile(t, what, snapshots > 0) })
		}
	}
}

func changedMeanwhile(t *testing.T, what string, next bool) {
	ctx := context.Background()
	p := testPool(t, nil)
	v, _, dir := mountedVolume(t, p, "ext4", 64*size.MiB)
	if next {
		must(p.CreateSnapshot(ctx, "old", v.LV))(t)
	}
	release := must(p.keys.lock(ctx, lvKey(v.LV)))(t)
	c := halfCut(t, p, v.LV, "s", true)
	w := must(p.latest())(t)
	top, snap := w.topDevice(w.VG.LV(v.LV)), w.snapDevice(w.Layers.Get(c.done.Layer).LV)
	var meanwhile func()
	switch what {
	case "metadata":
		lvm(t, "vgchange", "-qq", "--addtag", "theirs", p.vgName)
		c.ready.steps = []step{{do: stepRemove, device: device{name: "none", uuid: "none"}}} // fails if it is carried out
	case "devices":
		ok(t, p.dm.Suspend(ctx, top.name, dm.SuspendOptions{}))
		ok(t, p.dm.Resume(snap.name, snap.udev))
		ok(t, p.dm.Resume(top.name, top.udev))
	case "resumed":
		meanwhile = func() { ok(t, p.dm.Resume(top.name, top.udev)) }
	}
	ok(t, os.WriteFile(filepath.Join(dir, "x"), []byte("x"), 0o600))
	err := c.cutLate(ctx, meanwhile)
	if what != "metadata" {
		if !errors.Is(err, errWentOn) {
			t.Errorf("the cut returned %v, want errWentOn", err)
		}
		p.withdraw(ctx, c.done.Layer, v.LV, err)
	} else {
		ok(t, err)
		ok(t, p.do(ctx, &change{what: "record", edit: func(e *edit) error { return e.Record(c.done, "s") }}))
	}
	release()
	s := must(p.CreateSnapshot(ctx, "s", v.LV))(t)
	r := must(p.CreateVolume(ctx, VolumeSpec{Name: "copy", Mode: Filesystem, FSType: "ext4", ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: s.LV}}))(t)
	at := t.TempDir()
	ok(t, unix.Mount(must(p.Activate(ctx, r.LV))(t), at, "ext4", unix.MS_RDONLY, "noload"))
	if b := must(os.ReadFile(filepath.Join(at, "x")))(t); string(b) != "x" {
		t.Errorf("the file in the snapshot has %q, want x", b)
	}
	unmount(t, at)
	ok(t, p.Deactivate(ctx, r.LV))
	ok(t, p.DeleteVolume(ctx, r.LV))
	if n := len(settledTo(t, p, 4)); n != 4 {
		t.Errorf("the devices are %v, want four", devicesOf(t, p))
	}
}
