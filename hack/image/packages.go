package main

// multiarch has the name of the directory of each architecture's libraries.
var multiarch = map[string]string{
	"amd64": "x86_64-linux-gnu",
	"arm64": "aarch64-linux-gnu",
}

// tools are the programs in the image: those that internal/filesystem and
// mount-utils run, and three file-system checkers. A person needs the checkers
// to repair a file system on a node that has no tools of its own.
var tools = []string{
	"usr/bin/mount",
	"usr/sbin/blkid",
	"usr/sbin/mkfs.ext4", "usr/sbin/resize2fs", "usr/sbin/e2fsck",
	"usr/sbin/mkfs.xfs", "usr/sbin/xfs_growfs", "usr/sbin/xfs_repair",
	"usr/sbin/mkfs.btrfs", "usr/bin/btrfs", // btrfs also checks
}

// extras are files that the tools need in addition to their libraries.
var extras = []string{
	"etc/mke2fs.conf",
	"usr/lib/os-release", // tells scanners which release the packages come from
}

// loaded are libraries that are loaded by name at run time, so that no ELF
// header names them. glibc loads libgcc_s when a thread is cancelled, as btrfs
// does.
var loaded = []string{"libgcc_s.so.1"}

// packages are all packages that have any of these files, and gcc-12-base for
// the copyright of libgcc_s.
var packages = []string{
	"base-files", "btrfs-progs", "e2fsprogs", "gcc-12-base", "libblkid1", "libc6", "libcom-err2",
	"libext2fs2", "libgcc-s1", "libinih1", "liblzo2-2", "libmount1", "libpcre2-8-0",
	"libselinux1", "libudev1", "liburcu8", "libuuid1", "libzstd1", "mount",
	"util-linux", "xfsprogs", "zlib1g",
}
