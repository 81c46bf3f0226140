//go:build kernel

package filesystem

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// A mount that another mount covers is in the mount table but cannot be
// unmounted by its path: UnmountAll leaves it alone and ends.
func TestUnmountAll_covered(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	tmpfs := func(at string) {
		t.Helper()
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("test", at, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	tmpfs(target) // will be covered
	tmpfs(dir)
	t.Cleanup(func() { unmount(t, target); unmount(t, dir) })
	t.Cleanup(func() { unmount(t, dir) })
	tmpfs(target)
	tmpfs(target)
	for range 2 { // the second time nothing is left to do
		if err := UnmountAll(target); err != nil {
			t.Fatal(err)
		}
		var here, above unix.Stat_t
		if err := unix.Stat(target, &here); err != nil {
			t.Fatal(err)
		}
		if err := unix.Stat(dir, &above); err != nil {
			t.Fatal(err)
		}
		if here.Dev != above.Dev {
			t.Error("target is still mounted")
		}
	}
	if m, err := MountAt(target); err != nil || m == nil {
		t.Errorf("the covered mount: %v, %v", m, err)
	}
	if err := UnmountAll(filepath.Join(dir, "nothing")); err != nil {
		t.Error(err)
	}
}

// A bind mount has the restrictions of its source and the requested options of
// the mount point.
func TestBind_options(t *testing.T) {
	disk := disks(t, 1)[0]
	d := Device{Path: mapped(t, "bind", linear(32*size.MiB, disk, 0)), Type: Ext4}
	wipe(t, d.Path)
	if err := Format(t.Context(), d.Path, Ext4); err != nil {
		t.Fatal(err)
	}
	staged := mounted(t, d, false, "nosuid")
	write(t, staged, "content")
	target := t.TempDir()
	if m, err := MountAt(target); m != nil || err != nil {
		t.Errorf("MountAt of a plain directory: %v, %v", m, err)
	}
	if err := Bind(staged, target, true, []string{"noexec", "data=ordered"}); err != nil {
		t.Fatal(err)
	}
	expect(t, target, "content")
	if err := os.WriteFile(target+"/x", nil, 0o600); err == nil {
		t.Error("read-only bind mount was written to")
	}
	write(t, staged, "changed")
	expect(t, target, "changed")
	bind, err := MountAt(target)
	if err != nil || bind == nil {
		t.Fatalf("MountAt: %v, %v", bind, err)
	}
	for _, want := range []string{"ro", "noexec", "nosuid"} {
		if !HasOption(bind, want) {
			t.Errorf("bind mount has options %s, wanted %s", bind.Options, want)
		}
	}
	stage, err := MountAt(staged)
	if err != nil || !SameContent(stage, bind) {
		t.Errorf("staging and bind mount differ: %+v, %+v, %v", stage, bind, err)
	}
	f, err := os.Open(target)
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmount(target); !errors.Is(err, ErrBusy) {
		t.Errorf("unmount of a busy mount: %v", err)
	}
	f.Close()
	for range 2 {
		if err := Unmount(target); err != nil {
			t.Error(err)
		}
	}
	if err := Bind("/none", target, false, nil); err == nil {
		t.Error("bound a path that is not there")
	}
}
