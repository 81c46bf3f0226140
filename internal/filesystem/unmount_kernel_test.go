//go:build kernel

package filesystem

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A mount that another one covers is in the mount table at a path at which
// nobody can unmount it: it must be left alone, and not for ever be tried.
func TestUnmountAll(t *testing.T) {
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
			t.Error("something is still mounted")
		}
	}
	if m, err := MountAt(target); err != nil || m == nil {
		t.Errorf("the covered mount: %v, %v", m, err)
	}
	if err := UnmountAll(filepath.Join(dir, "nothing")); err != nil {
		t.Error(err)
	}
}
