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
	// ErrUnreachable: a mounted file system refuses all I/O, for example because it
	// has shut itself down after an error. Only a new mount makes it usable.
	ErrUnreachable = errors.New("the file system is unreachable")
	// ErrReadOnly: the kernel has made a mounted file system read-only after an
	// error. Only a new mount makes it writable.
	ErrReadOnly = errors.New("the file system was made read-only after an error")
)

// Reachable returns nil if the file system of a mount answers, and is writable if
// the mount is. It needs no I/O, so it does not wait for the disk. Errors:
// ErrUnreachable, ErrReadOnly.
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

// WriteBack writes the dirty data of the file system that is mounted at dir to its
// device. It also syncs the root directory: a file system that has shut itself
// down fails only this sync, or the open of the root. Errors: ErrUnreachable.
func WriteBack(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return unreachable(err)
	}
	defer f.Close()
	err = os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd()))) // this error may be an old one
	return errors.Join(err, unreachable(f.Sync()))
}

// Writable is Reachable with a test write, if the mount is writable. The write
// creates a file without a name and changes nothing. Only a write makes ext4
// notice that its journal cannot be written any more. A file system that blocks
// the write for longer than writeLimit counts as writable. Errors: ErrUnreachable,
// ErrReadOnly.
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

// writeLimit is how long Writable waits for its test write.
const writeLimit = time.Second

// unreachable wraps an I/O error with ErrUnreachable. It returns other errors as
// they are.
func unreachable(err error) error {
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.EUCLEAN) {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return err
}
