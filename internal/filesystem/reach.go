package filesystem

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

var (
	// ErrUnreachable: a mounted file system refuses all I/O, as one that has shut
	// itself down after an error. Only unmounting and mounting it brings it back.
	ErrUnreachable = errors.New("the file system is unreachable")
	// ErrReadOnly: the kernel has made a mounted file system read-only after an
	// error. Only unmounting and mounting it makes it writable again.
	ErrReadOnly = errors.New("the file system was made read-only after an error")
)

// Reachable returns nil if the file system of a mount answers, and can be written
// if the mount can. It asks nothing of the disk, so it does not wait for it.
// Errors: ErrUnreachable, ErrReadOnly.
func Reachable(m *mountinfo.Info) error {
	if _, err := os.Lstat(m.Mountpoint); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if slices.Contains(strings.Split(m.VFSOptions, ","), "shutdown") { // ext4 since Linux 6.15
		return fmt.Errorf("%w: %s has shut itself down at %s", ErrUnreachable, m.FSType, m.Mountpoint)
	}
	if madeReadOnly(m) {
		return fmt.Errorf("%w: %s at %s", ErrReadOnly, m.FSType, m.Mountpoint)
	}
	return nil
}

// WriteBack writes back the file system that is mounted at dir. One that has shut
// itself down says so when its root is written back by itself, or opened. Errors:
// ErrUnreachable.
func WriteBack(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return unreachable(err)
	}
	defer f.Close()
	err = os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd()))) // also of an error that is over
	return errors.Join(err, unreachable(f.Sync()))
}

// Writable does what Reachable does, and begins to write where the mount can be
// written, which changes nothing: ext4 notices only then that its journal cannot be
// written any more. One that makes the writer wait is no failure. Errors:
// ErrUnreachable, ErrReadOnly.
func Writable(m *mountinfo.Info) error {
	if err := Reachable(m); err != nil || HasOption(m, "ro") {
		return err
	}
	answer := make(chan error, 1)
	go func() {
		fd, err := unix.Open(m.Mountpoint, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if err == nil {
			err = unix.Close(fd)
		}
		answer <- err
	}()
	select {
	case err := <-answer:
		if errors.Is(err, unix.EROFS) {
			return fmt.Errorf("%w: %s at %s", ErrReadOnly, m.FSType, m.Mountpoint)
		}
		if err = unreachable(err); errors.Is(err, ErrUnreachable) {
			return err
		}
	case <-time.After(writeLimit):
	}
	return nil
}

// writeLimit is how long a writer may have to wait before nobody takes the file
// system for one that fails.
const writeLimit = time.Second

func unreachable(err error) error {
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.EUCLEAN) {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return err
}
