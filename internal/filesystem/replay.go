package filesystem

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Replay has the kernel put into the files what the journal or log holds, by a
// mount that nobody sees. It is for a device that is thrown away: other than
// ext4 and xfs, btrfs writes more than it must then.
func (d Device) Replay() error {
	err := d.mountUnseen()
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

// mountUnseen mounts the file system at no path and unmounts it again. A process
// that is killed leaves nothing.
func (d Device) mountUnseen() (err error) {
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
		// Its superblock may ask for a panic of the kernel instead.
		err = errors.Join(err, unix.FsconfigSetString(fd, "errors", "remount-ro"))
	}
	if err == nil {
		err = unix.FsconfigCreate(fd)
	}
	if err != nil {
		return fmt.Errorf("%w%s", err, said(fd))
	}
	mount, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return err
	}
	return unix.Close(mount)
}

// said returns the kernel's messages about a mount that failed.
func said(fd int) string {
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
