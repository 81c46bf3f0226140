package filesystem

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// errNoSuperblock: the device does not have the magic number of the file system.
var errNoSuperblock = errors.New("no superblock found")

// superblockSize returns the size of the file system according to the superblock
// on r. The offsets come from the kernel's fs/ext4/ext4.h,
// fs/xfs/libxfs/xfs_format.h and include/uapi/linux/btrfs_tree.h. Errors:
// errNoSuperblock, ErrContent.
func superblockSize(r io.ReaderAt, fsType string) (size.Bytes, error) {
	at := map[string]int64{Ext4: 1024, XFS: 0, Btrfs: btrfsSuperOffset}[fsType]
	sb := make([]byte, 1024)
	if _, err := r.ReadAt(sb, at); err != nil {
		return 0, err
	}
	little, big := binary.LittleEndian, binary.BigEndian
	var blocks, block uint64
	switch {
	case fsType == Ext4 && little.Uint16(sb[ext4Magic:]) == 0xef53 && little.Uint32(sb[ext4Incompat:])&ext4JournalDevice == 0:
		if blocks = uint64(little.Uint32(sb[4:])); little.Uint32(sb[ext4Incompat:])&0x80 != 0 { // the feature "64bit"
			blocks |= uint64(little.Uint32(sb[0x150:])) << 32
		}
		block = 1 << (10 + little.Uint32(sb[0x18:])&0xf)
	case fsType == XFS && bytes.HasPrefix(sb, []byte("XFSB")):
		blocks, block = big.Uint64(sb[8:]), uint64(big.Uint32(sb[4:]))
	case fsType == Btrfs && bytes.Equal(sb[0x40:0x48], btrfsMagic):
		blocks, block = little.Uint64(sb[0x70:]), 1
	default:
		return 0, errNoSuperblock
	}
	if over, length := bits.Mul64(blocks, block); over == 0 && 0 < length && length < 1<<62 {
		return size.Bytes(length), nil
	}
	return 0, fmt.Errorf("%w: its superblock claims %d blocks of %d bytes", ErrContent, blocks, block)
}

// HasSuperblock reports whether the device has a superblock of its file system.
// Unlike Probe it ignores other signatures on the device: users of the file system
// may write any signature to the rest of the device. Errors: ErrContent.
func (d Device) HasSuperblock() (bool, error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	switch _, err := superblockSize(f, d.Type); {
	case errors.Is(err, errNoSuperblock):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read %s superblock of %s: %w", d.Type, d.Path, err)
	}
	return true, nil
}

// growSlack is the number of bytes that a file system may leave unused at the end
// of its device: it does not use a last allocation group that is too small.
const growSlack = 4 * size.MiB

// NeedsGrow reports whether the device is larger than its file system. An xfs or
// btrfs must not be mounted, because its superblock on disk may be outdated then.
// Errors: ErrContent.
func (d Device) NeedsGrow() (bool, error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	length, err := DeviceSize(d.Path)
	if err != nil {
		return false, err
	}
	used, err := superblockSize(f, d.Type)
	if err != nil {
		return false, fmt.Errorf("read %s superblock of %s: %w", d.Type, d.Path, err)
	}
	return length >= used+growSlack, nil
}
