package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// attachFile makes the sparse file if it is missing and returns a loop device
// over it. fresh says that the file was made: it holds only zeroes.
func attachFile(path string, length size.Bytes) (device string, fresh bool, err error) {
	if path, err = filepath.Abs(path); err != nil {
		return "", false, err
	}
	// The kernel knows loop devices by the file's real path.
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", false, fmt.Errorf("pool file: %w", err)
	}
	path = filepath.Join(dir, filepath.Base(path))
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case err == nil:
		fresh = true
		if err := f.Truncate(int64(length)); err != nil {
			return "", false, errors.Join(err, f.Close(), os.Remove(path))
		}
	case errors.Is(err, fs.ErrExist):
		if device := loopOf(path); device != "" {
			return device, false, nil
		}
		if f, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
			return "", false, err
		}
		if info, err := f.Stat(); err == nil && info.Size() == 0 { // interrupted before it got its size
			fresh = true
			if err := f.Truncate(int64(length)); err != nil {
				return "", false, errors.Join(err, f.Close())
			}
		}
	default:
		return "", false, fmt.Errorf("pool file: %w", err)
	}
	defer f.Close()
	device, err = attachLoop(f)
	return device, fresh, err
}

// loopOf returns the loop device that has the file open already, or "".
func loopOf(path string) string {
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, b := range backing {
		if name, err := os.ReadFile(b); err == nil && strings.TrimSpace(string(name)) == path {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(filepath.Dir(b))))
		}
	}
	return ""
}

func attachLoop(f *os.File) (string, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("loop devices: %w", err)
	}
	defer control.Close()
	const tries = 16 // another process may take the free device first
	for range tries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", fmt.Errorf("finding a free loop device: %w", err)
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		if err := makeLoopNode(path, n); err != nil {
			return "", err
		}
		loop, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return "", err
		}
		config := unix.LoopConfig{Fd: uint32(f.Fd())}
		copy(config.Info.File_name[:], f.Name())
		// Past the page cache: the file's pages would double ours, and a power
		// cut would lose what we believe to be on the disk.
		config.Info.Flags = unix.LO_FLAGS_DIRECT_IO
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if errors.Is(err, unix.EINVAL) { // a file system without direct I/O
			config.Info.Flags = 0
			err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		}
		loop.Close()
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return "", fmt.Errorf("attaching %s to %s: %w", f.Name(), path, err)
		}
	}
	return "", fmt.Errorf("attaching %s: all free loop devices were taken by others", f.Name())
}

// makeLoopNode makes the node of a loop device that the kernel has just added
// where /dev is not the kernel's own.
func makeLoopNode(path string, n int) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	const loopMajor = 7
	err := unix.Mknod(path, unix.S_IFBLK|0o660, int(unix.Mkdev(loopMajor, uint32(n))))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
