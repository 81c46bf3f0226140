package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// attachFile creates the sparse file if it is missing, and returns a loop device on
// it. fresh says that attachFile made the file, so it holds only zeroes.
func attachFile(path string, length size.Bytes) (device string, fresh bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case err == nil:
		fresh = true
		if err := f.Truncate(int64(length)); err != nil {
			return "", false, errors.Join(err, f.Close(), os.Remove(path))
		}
	case errors.Is(err, fs.ErrExist):
		if device, err = loopOf(path); err != nil || device != "" {
			return device, false, err
		}
		if f, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
			return "", false, err
		}
		if info, err := f.Stat(); err == nil && info.Size() == 0 { // an earlier attempt was interrupted before it set the size
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

// loopOf returns the loop device that already has the file open, or "". It compares
// inodes: sysfs reports the path in the mount namespace in which the file was
// opened, and that may be the namespace of an earlier container. Two loop devices
// on one file would be two copies of a disk.
func loopOf(path string) (string, error) {
	var file unix.Stat_t
	if err := unix.Stat(path, &file); err != nil {
		return "", fmt.Errorf("pool file %s: %w", path, err)
	}
	bound, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return "", err
	}
	for _, b := range bound {
		name := filepath.Base(filepath.Dir(filepath.Dir(b)))
		var n int
		if _, err := fmt.Sscanf(name, "loop%d", &n); err != nil {
			return "", fmt.Errorf("loop device %s: %w", name, err)
		}
		device := filepath.Join("/dev", name)
		if err := makeLoopNode(device, n); err != nil {
			return "", err
		}
		same, err := backedBy(device, &file)
		if err != nil {
			return "", fmt.Errorf("loop device %s: %w", name, err)
		}
		if same {
			return device, nil
		}
	}
	return "", nil
}

// backedBy reports whether a loop device has the file open.
func backedBy(device string, file *unix.Stat_t) (bool, error) {
	loop, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer loop.Close()
	info, err := unix.IoctlLoopGetStatus64(int(loop.Fd()))
	if errors.Is(err, unix.ENXIO) { // detached in the meantime
		return false, nil
	}
	return err == nil && info.Device == file.Dev && info.Inode == file.Ino, err
}

func attachLoop(f *os.File) (string, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		m := Module{Name: "loop", Part: "loop devices", without: "a pool on a file needs them"}
		return "", fmt.Errorf("%w: %s: %w", ErrUnavailable, m, err)
	}
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
		// Set the block size explicitly: newer kernels would take it from the
		// file's disk, and a file system cannot be used on larger blocks than it
		// was made on.
		config := unix.LoopConfig{Fd: uint32(f.Fd()), Size: uint32(size.SectorBytes)}
		copy(config.Info.File_name[:], f.Name())
		// Bypass the page cache: the file's pages would duplicate ours, and a power
		// cut would lose data that we believe to be on the disk.
		config.Info.Flags = unix.LO_FLAGS_DIRECT_IO
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if errors.Is(err, unix.EINVAL) { // the file system does not support direct I/O
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
	return "", fmt.Errorf("attaching %s: other processes took all free loop devices", f.Name())
}

// makeLoopNode makes the node of a loop device that the kernel has just added, if
// /dev is not the kernel's own.
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
