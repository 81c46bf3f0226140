package filesystem

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Replay makes the kernel replay the journal or log, by a mount at no path. The
// device must be one that is discarded after use: btrfs, unlike ext4 and xfs,
// writes more than the replay needs. Errors: ErrUnclean if the file system is still
// unclean after the replay.
func (d Device) Replay() error {
	err := d.mountDetached()
	if err == nil {
		var ok bool
		if ok, err = d.Clean(); err == nil && !ok {
			err = ErrUnclean
		}
	}
	if err != nil {
		return fmt.Errorf("replay the journal of the %s on %s: %w", d.Type, d.Path, err)
	}
	return nil
}

// mountDetached mounts the file system at no path and unmounts it again. If the
// process is killed, the kernel unmounts the file system.
func (d Device) mountDetached() (err error) {
	fd, err := unix.Fsopen(d.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	flags := map[string][]string{Ext4: {"ro"}, XFS: {"ro", "nouuid"}, Btrfs: {"skip_balance"}}[d.Type]
	err = unix.FsconfigSetString(fd, "source", d.Path)
	for _, flag := range flags {
		err = errors.Join(err, unix.FsconfigSetFlag(fd, flag))
	}
	if d.Type == Ext4 {
		// Otherwise the superblock decides, and it may ask for a kernel panic.
		err = errors.Join(err, unix.FsconfigSetString(fd, "errors", "remount-ro"))
	}
	if err == nil {
		err = unix.FsconfigCreate(fd)
	}
	if err != nil {
		return fmt.Errorf("%w%s", err, kernelMessages(fd))
	}
	mount, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return err
	}
	return unix.Close(mount)
}

// kernelMessages returns the kernel's messages about a mount that failed, each
// after "; ". fd is the file system context.
func kernelMessages(fd int) string {
	var out strings.Builder
	b := make([]byte, 1024)
	for {
		n, err := unix.Read(fd, b)
		if n <= 0 || err != nil {
			return out.String()
		}
		out.WriteString("; " + strings.TrimSpace(string(b[:n])))
	}
}
