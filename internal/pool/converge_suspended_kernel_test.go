//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os/exec"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestOpen_devicesLeftSuspended: whichever device a killed process has left suspended,
// the next process resumes it, and the writers continue. The pool opens quickly, and
// LVM2's own commands work.
func TestOpen_devicesLeftSuspended(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.HydrationRate = size.MiB })
	r := rand.New(rand.NewPCG(31, 32))
	base := must(p.CreateVolume(ctx, VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: Block}))(t)
	volume := must(p.Activate(ctx, base.LV))(t)
	model := make(content, base.Size)
	model.scribble(t, r, volume, 100)
	must(p.CreateSnapshot(ctx, "s1", base.LV))(t)
	forked := append(content(nil), model...)
	f := must(p.CreateVolume(ctx, VolumeSpec{Name: "f", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "s1"}}))(t)
	fork := must(p.Activate(ctx, f.LV))(t)
	must(p.CreateSnapshot(ctx, "s2", f.LV))(t)
	client := must(dm.Open())(t)
	defer client.Close()
	config := p.config
	for i, x := range []struct {
		path  string
		model content
		left  []string // devices, in the order in which they were suspended
	}{
		{volume, model, []string{"base-real"}},
		{volume, model, []string{"s1-cow"}},
		{volume, model, []string{"s1"}},
		{volume, model, []string{"base"}},
		{volume, model, []string{"base", "s1", "base-real", "s1-cow"}},
		{fork, forked, []string{"f-real"}},
		{fork, forked, []string{"f-fork"}},
		{fork, forked, []string{"fork--f-cow"}},
		{fork, forked, []string{"s2"}},
		{fork, forked, []string{"s2-cow"}},
		{fork, forked, []string{"window"}},
		{fork, forked, []string{"f-real", "window", "f-fork", "s1-cow"}},
	} {
		at := size.Bytes(40+i) * size.MiB
		for j, layer := range x.left {
			if layer != "window" {
				continue
			}
			id := must(p.latest())(t).VG.LV(f.LV).ID
			for end := time.Now().Add(20 * time.Second); p.hydrator.window(id) == nil; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("no window was hydrated within 20 s")
				}
			}
			w := p.hydrator.window(id)
			x.left[j], at = "f-"+w.layer, w.Start.Bytes()
		}
		ok(t, p.Close())
		for _, name := range x.left {
			ok(t, client.Suspend(ctx, config.VolumeGroup+"-"+name, dm.SuspendOptions{SkipLockFS: true}))
		}
		b := directBuffer(t, 4096)
		copy(b, bytes.Repeat([]byte{byte('a' + i)}, len(b)))
		written := make(chan error, 1)
		go func() { written <- writeFrom(x.path, int64(at), b) }()
		select {
		case err := <-written:
			t.Logf("%v: the write did not block: %v", x.left, err)
			written <- err
		case <-time.After(100 * time.Millisecond):
		}
		copy(x.model[at:], b)
		begin := time.Now()
		p = openPool(t, config)
		if took := time.Since(begin); took > repairPatience {
			t.Errorf("%v: opening the pool took %v", x.left, took)
		}
		select {
		case err := <-written:
			ok(t, err)
		case <-time.After(10 * time.Second):
			for _, name := range x.left {
				client.Resume(config.VolumeGroup+"-"+name, 0)
			}
			t.Fatalf("%v: the writer is still blocked", x.left)
		}
		if out, err := exec.Command("timeout", "10", "lvs", config.VolumeGroup).CombinedOutput(); err != nil {
			t.Errorf("%v: lvs: %v %s", x.left, err, out)
		}
	}
	model.compare(t, volume, "the volume")
	forked.compare(t, fork, "the fork")
	config.HydrationRate = 0
	ok(t, p.Close())
	p = openPool(t, config)
	waitHydrated(t, p, f.LV)
	forked.compare(t, fork, "the fork, hydrated")
	for _, lv := range []string{f.LV, base.LV} {
		ok(t, p.Deactivate(ctx, lv))
	}
}

// TestOpen_endsWithItsContext: a disk that does not answer delays Open only until its
// context ends. When the disk answers again, the pool opens.
func TestOpen_endsWithItsContext(t *testing.T) {
	disk := newBadDisk(t, testDisks(t)[0])
	p := testPool(t, func(c *Config) { c.Devices = []string{disk.path} })
	ok(t, p.Close())
	ok(t, disk.client.Suspend(context.Background(), "baddisk", dm.SuspendOptions{SkipLockFS: true}))
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := Open(ctx, p.config, Options{})
		ended <- err
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Open returned %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("Open did not return when its context ended")
	}
	ok(t, disk.client.Resume("baddisk", 0))
	openPool(t, p.config)
}
