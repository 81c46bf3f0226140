//go:build kernel

package pool

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestLease_longActContinues: an act that takes long in the kernel still finishes if
// LVM2 has not changed the group meanwhile.
func TestLease_longActContinues(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	lv := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 32 * size.MiB, Mode: Block}))(t).LV
	ok(t, p.do(ctx, &change{what: "take long", act: func(ctx context.Context, v *view) error {
		time.Sleep(lateLimit + 2*lateLook)
		must(p.CreateVolume(ctx, VolumeSpec{Name: "other", Size: 32 * size.MiB, Mode: Block}))(t) // the act was left behind, so the group is free
		return p.up(ctx, v, v.VolumeByLV(lv))
	}}))
	if d := must(p.latest())(t); must(p.tableOf(d.topDevice(d.VG.LV(lv))))(t).Length().Bytes() != 32*size.MiB {
		t.Error("the volume has no device")
	}
	ok(t, p.Deactivate(ctx, lv))
}

// TestLease_actAfterChangeByLVM2: an act that hung in the kernel so long that lvm2 got
// the group's lock loads none of its tables when it returns.
func TestLease_actAfterChangeByLVM2(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	lv := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 32 * size.MiB, Mode: Block}))(t).LV
	must(p.Activate(ctx, lv))(t)
	length := func() size.Bytes {
		table := must(p.tableOf(must(p.latest())(t).topDevice(must(p.latest())(t).VG.LV(lv))))(t)
		return table.Length().Bytes()
	}
	hangs, extended, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	var after size.Bytes
	go func() {
		ended <- p.do(ctx, &change{what: "hang", act: func(ctx context.Context, v *view) error {
			close(hangs)
			<-extended
			err := p.up(ctx, v, v.VolumeByLV(lv))
			after = length()
			return err
		}})
	}()
	<-hangs
	began := time.Now()
	lvm(t, "lvextend", "-qq", "-L", "64m", p.vgName+"/"+lv) // waits until the act is left behind
	t.Logf("lvextend waited %v", time.Since(began))
	if now := length(); now != 64*size.MiB {
		t.Fatalf("after lvextend the device has %v", now)
	}
	close(extended)
	if err := <-ended; !errors.Is(err, errLeft) {
		t.Errorf("the act ended with %v, want errLeft", err)
	}
	if after != 64*size.MiB {
		t.Errorf("the act loaded a table of an old view: the device has %v", after)
	}
	for end := time.Now().Add(10 * time.Second); p.facts.unsettled.count() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the volume stays unsettled")
		}
	}
	if now := length(); now != 64*size.MiB {
		t.Errorf("in the end the device has %v", now)
	}
	ok(t, p.Deactivate(ctx, lv))
}

// TestLease_abandonedWhileSuspended: an abandoned act with a suspended volume resumes
// it soon, even if LVM2 has the group's lock and keeps it, because LVM2 may wait for
// the volume.
func TestLease_abandonedWhileSuspended(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	lv := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 32 * size.MiB, Mode: Block}))(t).LV
	path := must(p.Activate(ctx, lv))(t)
	must(p.CreateSnapshot(ctx, "s", lv))(t)
	release := must(p.keys.lock(ctx, lvKey(lv)))(t)
	f := must(p.freeze(ctx, lv))(t)
	left, locked, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- p.do(ctx, &change{what: "hang", act: func(ctx context.Context, v *view) error {
			return f.carryOut(ctx, func(ctx context.Context) error {
				for ; !v.lease.left.Load(); time.Sleep(lateLook / 10) {
				}
				close(left)
				<-locked
				return p.settle(ctx, v, lv)
			})
		}})
	}()
	<-left
	ok(t, p.refresh(ctx)) // so that the committer waits only with the act's own read of the metadata
	lock := must(p.host.LockVG(ctx, p.vgName, lvm2.Exclusive))(t)
	unlock := sync.OnceFunc(func() { ok(t, lock.Unlock()) })
	defer unlock()
	close(locked)
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		writeDevice(t, path, 0, make([]byte, 4096))
	}()
	began := time.Now()
	select {
	case <-wrote:
		t.Logf("the volume was resumed after %v", time.Since(began))
	case <-time.After(leaseLook + 10*time.Second):
		t.Error("the volume stays suspended while LVM2 has the lock")
	}
	unlock()
	if err := <-ended; !errors.Is(err, errLeft) {
		t.Errorf("the act ended with %v, want errLeft", err)
	}
	<-wrote
	f.release()
	release()
	for end := time.Now().Add(10 * time.Second); p.facts.unsettled.count() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the volume stays unsettled")
		}
	}
	if s := must(p.Snapshot(ctx, "s"))(t); s.Lost {
		t.Error("the snapshot is lost")
	}
	ok(t, p.Deactivate(ctx, lv))
}
