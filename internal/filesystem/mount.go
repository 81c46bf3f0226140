package filesystem

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Mount mounts the file system at target with the given mount(8) options and with
// the options that the device needs. A read-only device is mounted read-only and
// without a replay of the journal. A copy of an xfs is mounted without the check
// for unique UUIDs. Without a replay files may be missing, so Mount refuses an
// unclean file system then, and leaves out the options that need the journal. If
// an option is not in effect, Mount unmounts the file system again. Errors:
// ErrContent, ErrUnclean, ErrDuplicate, ErrNotInEffect.
func (d Device) Mount(target string, readOnly bool, options []string) error {
	options = SplitOptions(options...)
	if readOnly || d.ReadOnly {
		options = append(options, "ro")
	}
	switch {
	case d.Type == XFS && d.Copy:
		options = append(options, "nouuid")
	case d.Type == Btrfs:
		if err := d.checkBtrfs(); err != nil {
			return fmt.Errorf("mount %s at %s: %w", d.Path, target, err)
		}
	}
	if d.ReadOnly || slices.ContainsFunc(options, skipsReplay) {
		if ok, err := d.Clean(); err != nil {
			return fmt.Errorf("mount %s at %s: %w", d.Path, target, err)
		} else if !ok {
			return fmt.Errorf("mount %s at %s without a replay: %w", d.Path, target, ErrUnclean)
		}
		options = slices.DeleteFunc(options, func(o string) bool { return needsJournal(d.Type, o) })
	}
	if d.ReadOnly { // a replay would have to write
		switch d.Type {
		case Ext4:
			options = append(options, "noload")
		case XFS:
			var err error
			if options, err = d.withQuotas(append(options, "norecovery")); err != nil {
				return fmt.Errorf("mount %s at %s: %w", d.Path, target, err)
			}
		case Btrfs:
			options = append(options, "rescue=nologreplay")
		}
	}
	if err := d.mount(target, options); err != nil {
		return fmt.Errorf("mount %s at %s: %w", d.Path, target, err)
	}
	m, err := MountAt(target)
	if err == nil && m != nil {
		err = InEffect(m, options)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("mount %s: %w", d.Path, err), Unmount(target))
	}
	return nil
}

// skipsReplay reports whether a mount option keeps a file system from replaying its
// journal or log.
func skipsReplay(o string) bool {
	return slices.Contains([]string{"noload", "norecovery", "nologreplay"}, o) ||
		strings.HasPrefix(o, "rescue=") && (strings.Contains(o, "nologreplay") || strings.Contains(o, "all"))
}

// bindFlags are the mount options that belong to a mount point, not to the file
// system. A bind mount can differ from its source only in these options.
var bindFlags = map[string]uintptr{
	"ro":         unix.MS_RDONLY,
	"nosuid":     unix.MS_NOSUID,
	"nodev":      unix.MS_NODEV,
	"noexec":     unix.MS_NOEXEC,
	"noatime":    unix.MS_NOATIME,
	"nodiratime": unix.MS_NODIRATIME,
	"relatime":   unix.MS_RELATIME,
}

// Bind binds source, a directory or a file, to target, which must exist and be of
// the same kind. Bind applies only the options of the mount point and ignores
// those of the file system, which belong to its first mount. Restrictions of the
// source mount stay in effect.
func Bind(source, target string, readOnly bool, options []string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s at %s: %w", source, target, err)
	}
	if err := restrict(target, readOnly, options); err != nil {
		return errors.Join(fmt.Errorf("bind %s at %s: %w", source, target, err), Unmount(target))
	}
	return nil
}

// restrict adds flags to a bind mount. It needs a remount because the kernel
// ignores the flags when it creates the bind mount.
func restrict(target string, readOnly bool, options []string) error {
	var flags uintptr
	for _, o := range options {
		flags |= bindFlags[o]
	}
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	if flags == 0 {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		return err
	}
	// A remount replaces all flags, except those of access times.
	const keep = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	flags |= uintptr(st.Flags) & keep
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|flags, "")
}

// Share gives the mount at path a peer group, if it has none. Its bind mounts join
// the group. So these mounts can be distinguished from other mounts of the same
// file system, in every mount namespace.
func Share(path string) error {
	if err := unix.Mount("", path, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make the mount at %s shared: %w", path, err)
	}
	return nil
}

// PeerGroup returns the id of a mount's peer group; "" if it has none.
func PeerGroup(m *mountinfo.Info) string {
	for _, field := range strings.Fields(m.Optional) {
		if group, is := strings.CutPrefix(field, "shared:"); is {
			return group
		}
	}
	return ""
}

// SetReadOnly makes a block device read-only or writable for all users of its
// device node. It changes neither the devices below it nor a read-only table of
// device-mapper. A device that no longer exists is no error.
func SetReadOnly(device string, readOnly bool) error {
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) { // the device no longer exists
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	value := 0
	if readOnly {
		value = 1
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, value); err != nil {
		return fmt.Errorf("set %s read-only %v: %w", device, readOnly, err)
	}
	return nil
}

// Unmount removes the topmost mount at target. It does nothing if nothing is
// mounted there. It does not follow a symbolic link. Errors: ErrBusy.
func Unmount(target string) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	switch {
	case err == nil, errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("unmount %s: %w", target, ErrBusy)
	}
	return fmt.Errorf("unmount %s: %w", target, err)
}

// UnmountAll removes every mount at target that can be reached by this path. It
// does not follow a symbolic link. It does not use the mount table, which also
// lists mounts that are covered by a mount of a parent directory and cannot be
// removed. Errors: ErrBusy.
func UnmountAll(target string) error {
	for {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil, errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.EBUSY):
			return fmt.Errorf("unmount %s: %w", target, ErrBusy)
		}
		return fmt.Errorf("unmount %s: %w", target, err)
	}
}

// Mounts returns the mounts of this process's mount namespace. A mount precedes
// the mounts that it covers.
func Mounts() ([]*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	slices.Reverse(mounts)
	return mounts, nil
}

// MountAt returns the topmost mount at exactly path; nil if there is none. The path
// must be free of symbolic links.
func MountAt(path string) (*mountinfo.Info, error) {
	mounts, err := Mounts()
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(mounts, func(m *mountinfo.Info) bool { return m.Mountpoint == path }); i >= 0 {
		return mounts[i], nil
	}
	return nil, nil
}

// SameContent reports whether two mounts show the same file or directory of the
// same file system.
func SameContent(a, b *mountinfo.Info) bool {
	return a.Major == b.Major && a.Minor == b.Minor && a.Root == b.Root
}

// HasOption reports whether a mount point has an option, such as "ro". Options of
// the file system do not count.
func HasOption(m *mountinfo.Info, option string) bool {
	return slices.Contains(strings.Split(m.Options, ","), option)
}

// MountedFrom reports whether m is the mount of a device's file system, or a bind
// mount of the device node. The device must exist.
func MountedFrom(m *mountinfo.Info, device string) (bool, error) {
	want, err := deviceNumber(device)
	if err != nil {
		return false, err
	}
	return mountedFrom(m, want), nil
}

// MountsFrom returns those of the mounts that MountedFrom reports; none if the device
// does not exist. It makes no system call for most of the mounts, because a node may
// have thousands.
func MountsFrom(mounts []*mountinfo.Info, device string) []*mountinfo.Info {
	want, err := deviceNumber(device)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(mounts, func(m *mountinfo.Info) bool { return !mountedFrom(m, want) })
}

// mountedFrom reports whether m shows the device with a number, or its file system.
func mountedFrom(m *mountinfo.Info, want uint64) bool {
	if unix.Mkdev(uint32(m.Major), uint32(m.Minor)) == want {
		return true
	}
	is := func(path string) bool {
		number, err := deviceNumber(path)
		return err == nil && number == want
	}
	if m.FSType == "btrfs" && is(m.Source) { // its mounts have device numbers of their own
		return true
	}
	if m.Root == "/" { // no bind mount of a node
		return false
	}
	// The kernel names the nodes of dm devices after their numbers.
	if n, dm := strings.CutPrefix(strings.TrimSuffix(m.Root, "//deleted"), "/dm-"); dm && m.FSType == "devtmpfs" && n != fmt.Sprint(unix.Minor(want)) {
		return false
	}
	return is(m.Mountpoint)
}

// deviceNumber returns the number of the block device at path.
func deviceNumber(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, fmt.Errorf("%s is not a block device", path)
	}
	return st.Rdev, nil
}
