//go:build kernel

package pool

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestBatch_oneChangeDoesNotFit: if the metadata area is full, each change of a batch
// gets its own answer: deletes succeed, and creates fail. No volume is marked as
// unsettled.
func TestBatch_oneChangeDoesNotFit(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) {
		c.Create, c.LayerReserve = false, 1
		lvm(t, "pvcreate", "-y", "-qq", "--dataalignment", "64k", "--metadatasize", "56k", c.Devices[0])
		lvm(t, "vgcreate", "-qq", "-s", "64k", c.VolumeGroup, c.Devices[0])
	})
	var err error
	for n := 0; err == nil; n++ {
		_, err = p.CreateVolume(ctx, VolumeSpec{Name: fmt.Sprintf("v%d", n), Size: 64 * size.KiB, Mode: Block})
	}
	if !errors.Is(err, ErrNoSpace) {
		t.Fatal(err)
	}
	marked := p.facts.unsettled.count
	if n := marked(); n > 0 {
		t.Errorf("%d volumes are to be looked after though nothing was written", n)
	}
	lock := must(p.host.LockVG(ctx, p.vgName, lvm2.Exclusive))(t) // the changes that arrive until Unlock are one batch
	long := strings.Repeat("x", 100)
	steps := []struct {
		name string
		f    func() error
		want error
	}{
		{"read", func() error { return p.refresh(ctx) }, nil}, // waits for the lock
		{"create", func() error { return create(p, long) }, ErrNoSpace},
		{"delete", func() error { return p.DeleteVolume(ctx, "v0") }, nil},
		{"create another", func() error { return create(p, "y"+long) }, ErrNoSpace},
		{"delete another", func() error { return p.DeleteVolume(ctx, "v1") }, nil},
	}
	answers := make([]chan error, len(steps))
	for i, s := range steps {
		answers[i] = make(chan error, 1)
		go func() { answers[i] <- s.f() }()
		time.Sleep(100 * time.Millisecond)
	}
	ok(t, lock.Unlock())
	for i, s := range steps {
		if err := <-answers[i]; !errors.Is(err, s.want) {
			t.Errorf("%s: %v, want %v", s.name, err, s.want)
		}
	}
	if n := marked(); n > 0 {
		t.Errorf("%d volumes are to be looked after though nothing was written", n)
	}
	vgck(t, p.vgName)
}

func create(p *Pool, name string) error {
	_, err := p.CreateVolume(context.Background(), VolumeSpec{Name: name, Size: 64 * size.KiB, Mode: Block})
	return err
}
