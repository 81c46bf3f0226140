//go:build kernel

package pool

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestOnceRoom_trashHeldOpen: if only trash that another process has open could make
// room, cuts, volumes and expansions are refused without waiting, with the reason.
func TestOnceRoom_trashHeldOpen(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.LayerReserve = 1 })
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 16 * size.MiB, Mode: Block}))(t)
	_, letGo := trashOf(t, p)
	fill(t, p, 0)
	trash := must(p.latest())(t).Trash
	for end := time.Now().Add(20 * time.Second); !p.wiper.stuck(trash[0].ID); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the open trash does not count as stuck")
		}
	}
	for what, f := range map[string]func() error{
		"a cut": func() error { _, err := p.CreateSnapshot(ctx, "s", v.LV); return err },
		"a volume": func() error {
			_, err := p.CreateVolume(ctx, VolumeSpec{Name: "w", Size: 4 * size.MiB, Mode: Block})
			return err
		},
		"expansion": func() error { _, err := p.ExpandVolume(ctx, v.LV, 20*size.MiB, 0); return err },
	} {
		began, ended := time.Now(), make(chan error, 1)
		go func() { ended <- f() }()
		select {
		case err := <-ended:
			if took := time.Since(began); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "not wiped") || took > 2*time.Second {
				t.Errorf("%s returned %v after %v", what, err, took)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s still waits after 20 s", what)
		}
	}
	letGo()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if _, err := p.CreateSnapshot(ctx, "s", v.LV); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
