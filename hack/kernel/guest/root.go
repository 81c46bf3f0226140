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

// makeRoot puts a writable layer over the host's file system, which is mounted
// at host, and makes the result the root. The command may write everywhere, but
// only writes to the shared directories reach the host.
func makeRoot(host string, shares []Mount) error {
	// The layer is made here. Any directory that every host has will do: the
	// new root shows again what the layer hides.
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
	// systemd makes the root shared too, so the mount propagation of pods meets
	// the same here.
	return unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")
}
