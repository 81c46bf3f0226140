package filesystem

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Usage is how full a mounted file system is.
type Usage struct {
	Total, Used, Available size.Bytes // Available is for unprivileged users
	// Inodes. All three are 0 if the file system has no fixed number (btrfs).
	Inodes, InodesUsed, InodesFree uint64
}

// UsageOf returns the usage of the file system at path.
func UsageOf(path string) (Usage, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Usage{}, fmt.Errorf("statfs %s: %w", path, err)
	}
	block := size.Bytes(st.Frsize)
	return Usage{
		Total:      size.Bytes(st.Blocks) * block,
		Used:       size.Bytes(st.Blocks-st.Bfree) * block,
		Available:  size.Bytes(st.Bavail) * block,
		Inodes:     st.Files,
		InodesUsed: st.Files - st.Ffree,
		InodesFree: st.Ffree,
	}, nil
}

// DeviceSize returns the size of a block device.
func DeviceSize(path string) (size.Bytes, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("size of block device: %w", err)
	}
	defer f.Close()
	// The end of a block device is its size, as BLKGETSIZE64 returns it.
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("size of block device: %w", err)
	}
	return size.Bytes(end), nil
}
