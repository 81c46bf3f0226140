//go:build kernel

package pool

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestCollected_snapshotRemovedByHand: somebody removes the device of the newest
// snapshot, so the kernel no longer saves originals. The snapshot and older ones are
// reported lost, however soon the next cut, unstage or restart comes. The next
// snapshot is complete.
func TestCollected_snapshotRemovedByHand(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, nil)
	for _, then := range []string{"nothing", "cut", "restore", "deactivate", "forced", "restart"} {
		t.Run(then, func(t *testing.T) {
			v := must(p.CreateVolume(ctx, VolumeSpec{Name: then, Size: 16 * size.MiB, Mode: Block}))(t)
			path := must(p.Activate(ctx, v.LV))(t)
			old, first, second := bytes.Repeat([]byte("A"), 4096), "first-of-"+then, "second-of-"+then
			writeDevice(t, path, 0, old)
			must(p.CreateSnapshot(ctx, first, v.LV))(t)
			must(p.CreateSnapshot(ctx, second, v.LV))(t)
			config := p.config
			if then == "restart" {
				ok(t, p.Close())
			}
			remove := []string{"dmsetup", "remove", "--retry", config.VolumeGroup + "-second--of--" + then}
			if then == "forced" {
				remove = append(remove, "--force")
			}
			lvm(t, remove...)
			writeDevice(t, path, 0, bytes.Repeat([]byte("B"), 4096))
			switch then {
			case "cut":
				must(p.CreateSnapshot(ctx, "third", v.LV))(t)
				writeDevice(t, path, 0, bytes.Repeat([]byte("C"), 4096))
				must(p.CreateVolume(ctx, VolumeSpec{Name: "r3", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "third"}}))(t)
				if got := readDevice(t, must(p.Activate(ctx, "r3"))(t), 4096); got[0] != 'B' {
					t.Errorf("the next snapshot reads %q, want B", got[:8])
				}
				ok(t, p.Deactivate(ctx, "r3"))
			case "restore":
				if _, err := p.CreateVolume(ctx, VolumeSpec{Name: "r", Mode: Block, Source: Source{Kind: FromSnapshot, LV: first}}); !errors.Is(err, ErrLost) {
					t.Errorf("a restore returned %v, want ErrLost", err)
				}
			case "deactivate":
				ok(t, p.Deactivate(ctx, v.LV))
			case "restart":
				p = openPool(t, config)
			}
			for _, s := range []string{first, second} {
				for end := time.Now().Add(10 * time.Second); !must(p.Snapshot(ctx, s))(t).Lost; time.Sleep(20 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("the loss of %s is not recorded", s)
					}
				}
			}
			if then != "deactivate" {
				writeDevice(t, path, 4096, old)
				must(p.CreateSnapshot(ctx, "again-"+then, v.LV))(t)
				writeDevice(t, path, 4096, bytes.Repeat([]byte("D"), 4096))
				if s := must(p.Snapshot(ctx, "again-"+then))(t); s.Lost {
					t.Error("a snapshot that was taken afterwards counts as lost")
				}
			}
			ok(t, p.Deactivate(ctx, v.LV))
		})
	}
}

// TestDevices_removedByHand: whichever device somebody removes by force, no operation
// panics.
func TestDevices_removedByHand(t *testing.T) {
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.HydrationRate = size.MiB })
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: 16 * size.MiB, Mode: Block}))(t)
	must(p.Activate(ctx, v.LV))(t)
	must(p.CreateSnapshot(ctx, "s1", v.LV))(t)
	must(p.CreateSnapshot(ctx, "s2", v.LV))(t)
	f := must(p.CreateVolume(ctx, VolumeSpec{Name: "f", Mode: Block, Source: Source{Kind: FromSnapshot, LV: "s1"}}))(t)
	must(p.Activate(ctx, f.LV))(t)
	must(p.CreateVolume(ctx, VolumeSpec{Name: "r", Mode: Block, ReadOnly: true, Source: Source{Kind: FromSnapshot, LV: "s1"}}))(t)
	must(p.Activate(ctx, "r"))(t)
	for _, name := range []string{"r", "s1", "f-fork", "fork--f-cow", "v-real", "s2"} {
		_ = exec.Command("dmsetup", "remove", "--force", p.vgName+"-"+name).Run() // fails for a device in use, which stays
		for what, f := range map[string]func() error{
			"activate":        func() error { _, err := p.Activate(ctx, v.LV); return err },
			"activate fork":   func() error { _, err := p.Activate(ctx, f.LV); return err },
			"activate reader": func() error { _, err := p.Activate(ctx, "r"); return err },
			"cut":             func() error { _, err := p.CreateSnapshot(ctx, "of-v-"+name, v.LV); return err },
			"cut fork":        func() error { _, err := p.CreateSnapshot(ctx, "of-f-"+name, f.LV); return err },
			"expand":          func() error { _, err := p.ExpandVolume(ctx, v.LV, 20*size.MiB, 0); return err },
			"health":          func() error { _, err := p.Health(ctx, f.LV); return err },
			"settle":          func() error { return p.settleAgain(ctx, f.LV) },
		} {
			if err := f(); errors.Is(err, errPanic) {
				t.Errorf("%s without %s panicked: %v", what, name, err)
			}
		}
	}
	for _, lv := range []string{"r", f.LV, v.LV} {
		if err := p.Deactivate(ctx, lv); errors.Is(err, errPanic) {
			t.Errorf("deactivating %s panicked: %v", lv, err)
		}
		if err := p.DeleteVolume(ctx, lv); errors.Is(err, errPanic) {
			t.Errorf("deleting %s panicked: %v", lv, err)
		}
	}
}
