package guest

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func (m Mount) do() error {
	if err := os.MkdirAll(m.Target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.Source, m.Target, m.Type, 0, m.Data); err != nil {
		return fmt.Errorf("mounting %s on %s: %w", m.Type, m.Target, err)
	}
	return nil
}

// makeRoot puts a writable layer over the host's file system, which
// is mounted at host, and makes it the root: the command may write everywhere
// and nothing of it reaches the host, except in the shared directories.
func makeRoot(host string, shares []Mount) error {
	// Where the layer is made; any directory that exists on every host will do,
	// what it hides comes back with the new root.
	const layer = "/tmp"
	const root = layer + "/root"
	if err := (Mount{"tmpfs", layer, "tmpfs", "mode=0755"}).do(); err != nil {
		return err
	}
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(layer, d), 0o755); err != nil {
			return err
		}
	}
	mounts := []Mount{
		{"overlay", "", "overlay", "lowerdir=" + host + ",upperdir=" + layer + "/upper,workdir=" + layer + "/work"},
		{"proc", "/proc", "proc", ""},
		{"sysfs", "/sys", "sysfs", ""},
		{"devtmpfs", "/dev", "devtmpfs", ""},
		{"devpts", "/dev/pts", "devpts", "mode=0620,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", "tmpfs", "mode=1777"},
		{"tmpfs", "/run", "tmpfs", "mode=0755"},
	}
	for _, m := range append(mounts, shares...) {
		m.Target = root + m.Target
		if err := m.do(); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, filepath.Join(root, "dev", link)); err != nil {
			return err
		}
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the new root into place: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// As on a system started by systemd: what a pod's mount propagation meets.
	return unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")
}
