package filesystem

import (
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	mountutils "k8s.io/mount-utils"
)

// mountFlags are the options that mount(8) passes to the kernel as flags, and that
// mountCall passes too.
var mountFlags = map[string]uintptr{
	"ro":         unix.MS_RDONLY,
	"nosuid":     unix.MS_NOSUID,
	"nodev":      unix.MS_NODEV,
	"noexec":     unix.MS_NOEXEC,
	"noatime":    unix.MS_NOATIME,
	"nodiratime": unix.MS_NODIRATIME,
}

// plainOptions are the options of file systems that mount(8) passes to the kernel
// as they are. An option with a value is listed without it.
var plainOptions = []string{
	// ext4
	"noload", "discard", "nodiscard", "data", "data_err", "commit", "errors", "barrier", "nobarrier", "journal_checksum",
	"delalloc", "nodelalloc", "stripe", "user_xattr", "acl", "noacl", "init_itable", "noinit_itable", "usrjquota", "grpjquota", "jqfmt",
	// xfs
	"nouuid", "norecovery", "logbufs", "logbsize", "allocsize", "inode32", "inode64", "largeio", "nolargeio", "swalloc", "sunit", "swidth",
	"uquota", "gquota", "pquota", "usrquota", "grpquota", "prjquota", "uqnoenforce", "gqnoenforce", "pqnoenforce", "noquota", "quota",
	// btrfs
	"rescue", "compress", "compress-force", "autodefrag", "noautodefrag", "ssd", "nossd", "subvol", "subvolid", "space_cache",
	"datacow", "nodatacow", "datasum", "nodatasum", "max_inline", "skip_balance", "thread_pool", "flushoncommit", "noflushoncommit",
}

// mountOptions turns mount(8) options into the arguments of mount(2). It reports
// false if only mount(8) can be trusted with them: an option that is in neither list
// may be one of libmount's own, such as _netdev or x-…, or may cancel another one.
func mountOptions(options []string) (flags uintptr, data string, ok bool) {
	var rest []string
	for _, o := range options {
		name, _, _ := strings.Cut(o, "=")
		flag, is := mountFlags[o]
		switch {
		case is:
			flags |= flag
		case slices.Contains(plainOptions, name) && !strings.ContainsAny(o, `",`):
			rest = append(rest, o)
		default:
			return 0, "", false
		}
	}
	return flags, strings.Join(rest, ","), true
}

// helperDirs are the directories in which mount(8) looks for a program
// mount.TYPE that mounts file systems of a type in its place.
var helperDirs = []string{"/sbin", "/sbin/fs.d", "/sbin/fs"}

// hasHelper reports whether mount(8) would leave the mount to another program.
func hasHelper(fsType string) bool {
	return slices.ContainsFunc(helperDirs, func(dir string) bool {
		return unix.Access(filepath.Join(dir, "mount."+fsType), unix.F_OK) == nil
	})
}

// mount mounts the device as mount(8) does. It starts mount(8) only if the
// system call is not enough: for options of mount(8), for a helper of the file system,
// and after an error. mount(8) explains the error, or mounts read-only. Starting the
// program costs more than the mount.
func (d Device) mount(target string, options []string) error {
	flags, data, ok := mountOptions(options)
	if ok && !hasHelper(d.Type) && unix.Mount(d.Path, target, d.Type, flags, data) == nil {
		return nil
	}
	return (&mountutils.Mounter{}).Mount(d.Path, target, d.Type, options)
}
