//go:build kernel

package pool

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestAttachFile_otherMountNamespace: a file that is attached again by another mount, as
// by a restarted driver in a new container, keeps its loop device.
func TestAttachFile_otherMountNamespace(t *testing.T) {
	host := t.TempDir()
	// A loop device needs a file system other than the host's, which is visible
	// through hostfs.
	if err := unix.Mount("test", host, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(host, unix.MNT_DETACH) })
	attach := func() (device string, fresh bool) {
		t.Helper()
		container := t.TempDir()
		if err := unix.Mount(host, container, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		device, fresh, err := attachFile(filepath.Join(container, "pool.img"), 64*size.MiB)
		if err != nil {
			t.Fatal(err)
		}
		// The container ends, with its mounts.
		if err := unix.Unmount(container, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		return device, fresh
	}
	first, fresh := attach()
	if !fresh {
		t.Error("a new file does not count as fresh")
	}
	t.Cleanup(func() { detachLoop(t, first) })
	second, fresh := attach()
	if second != first || fresh {
		t.Errorf("the file is attached at %s and then at %s, fresh: %v", first, second, fresh)
		detachLoop(t, second)
	}
}

func detachLoop(t *testing.T, device string) {
	t.Helper()
	f, err := os.Open(device)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		t.Error(err)
	}
}
