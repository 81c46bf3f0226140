//go:build kernel

package pool

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestActThatTakesLong: what takes the kernel long is done all the same if nobody has
// changed the group meanwhile.
func TestActThatTakesLong(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	lv := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 32 * size.MiB, Mode: Block}))(t).LV
	ok(t, p.do(ctx, &change{what: "take long", act: func(ctx context.Context, v *view) error {
		time.Sleep(lateLimit + 2*lateLook)
		must(p.CreateVolume(ctx, VolumeSpec{Name: "other", Size: 32 * size.MiB, Mode: Block}))(t) // it was left: the group is free
		return p.up(ctx, v, v.volumeByLV(lv))
	}}))
	if d := must(p.latest())(t); must(p.tableOf(d.topDevice(d.vg.LV(lv))))(t).Length().Bytes() != 32*size.MiB {
		t.Error("the volume has no device")
	}
	ok(t, p.Deactivate(ctx, lv))
}

// TestActThatWasLeft: what hung in the kernel for so long that lvm2 got the group
// loads no table of what it knew when it returns.
func TestActThatWasLeft(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	lv := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 32 * size.MiB, Mode: Block}))(t).LV
	must(p.Activate(ctx, lv))(t)
	length := func() size.Bytes {
		table := must(p.tableOf(must(p.latest())(t).topDevice(must(p.latest())(t).vg.LV(lv))))(t)
		return table.Length().Bytes()
	}
	hangs, extended, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	var after size.Bytes
	go func() {
		ended <- p.do(ctx, &change{what: "hang", act: func(ctx context.Context, v *view) error {
			close(hangs)
			<-extended
			err := p.up(ctx, v, v.volumeByLV(lv))
			after = length()
			return err
		}})
	}()
	<-hangs
	began := time.Now()
	lvm(t, "lvextend", "-qq", "-L", "64m", p.vgName+"/"+lv) // it waits until the act is left behind
	t.Logf("lvextend waited %v", time.Since(began))
	if now := length(); now != 64*size.MiB {
		t.Fatalf("lvm2 has made the device %v long", now)
	}
	close(extended)
	if err := <-ended; !errors.Is(err, errLeft) {
		t.Errorf("the act ended with %v", err)
	}
	if after != 64*size.MiB {
		t.Errorf("the device has the table of an old view, it is %v long", after)
	}
	for end := time.Now().Add(10 * time.Second); p.facts.unsettled.count() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the volume is not looked after")
		}
	}
	if now := length(); now != 64*size.MiB {
		t.Errorf("in the end the device is %v long", now)
	}
	ok(t, p.Deactivate(ctx, lv))
}
