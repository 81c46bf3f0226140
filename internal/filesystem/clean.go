package filesystem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// ErrUnclean: the file system's journal or log has changes that its files lack,
// and the device accepts no writes, so the changes cannot be replayed.
var ErrUnclean = errors.New("the file system was neither frozen nor unmounted, and its journal must be replayed")

// superLen is the number of bytes read of a superblock of ext4 or xfs.
const superLen = 1024

// Fields of the ext4 superblock, as in the kernel's fs/ext4/ext4.h.
const (
	ext4SuperOffset   = 1024
	ext4Magic         = 0x38  // 16 bits
	ext4Compat        = 0x5c  // 32 bits
	ext4Incompat      = 0x60  // 32 bits
	ext4JournalBackup = 0xfd  // 1 if the superblock has a copy of the journal's inode
	ext4JournalSize   = 0x148 // upper and lower 32 bits, from the copy of the inode

	ext4HasJournal    = 1 << 2 // compatible feature
	ext4NeedsRecovery = 1 << 2 // incompatible feature: the journal is not empty
	ext4JournalDevice = 1 << 3 // incompatible feature: the device is only the journal of another file system
)

// btrfsLogRoot is the offset of the address of the log tree, which has the data
// synchronised since the last transaction; the address is 0 if there is no tree.
const btrfsLogRoot = 0x60

// Clean reports whether the files have everything that the file system has
// acknowledged, without a replay of its journal or log. It depends only on the
// device's content: ext4 marks a journal that is in use, btrfs has a log tree, and
// Clean reads the records in the log of xfs. In doubt it returns false. Errors:
// those of reading the device, ErrContent.
func (d Device) Clean() (bool, error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	ok, err := clean(f, d.Type)
	if err != nil {
		return false, fmt.Errorf("check whether the %s on %s is clean: %w", d.Type, d.Path, err)
	}
	return ok, nil
}

func clean(r io.ReaderAt, fsType string) (bool, error) {
	switch fsType {
	case Ext4:
		sb, err := readExt4Super(r)
		if err != nil {
			return false, err
		}
		return binary.LittleEndian.Uint32(sb[ext4Incompat:])&ext4NeedsRecovery == 0, nil
	case XFS:
		log, err := readXFSLog(r)
		if err != nil {
			return false, err
		}
		return log.clean()
	case Btrfs:
		sb, err := readBtrfsSuper(r)
		if err != nil {
			return false, err
		}
		return binary.LittleEndian.Uint64(sb[btrfsLogRoot:]) == 0, nil
	}
	return false, fmt.Errorf("unknown file system %q", fsType)
}

func readExt4Super(r io.ReaderAt) ([]byte, error) {
	sb := make([]byte, superLen)
	if _, err := r.ReadAt(sb, ext4SuperOffset); err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint16(sb[ext4Magic:]) != 0xef53 {
		return nil, errNoSuperblock
	}
	return sb, nil
}

// A replay writes the content of the journal or log, and a little more. This is
// an estimate, not a limit: a few bytes in the log of xfs may change a whole block.
const (
	replaySlack   = 16 * size.MiB
	replayUnknown = 128 * size.MiB // if the length of the log is not known
)

// ReplayRoom returns the number of bytes that a replay of the journal or log is
// likely to write. Errors: those of reading the device, ErrContent.
func (d Device) ReplayRoom() (size.Bytes, error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	switch d.Type {
	case Ext4:
		sb, err := readExt4Super(f)
		if err != nil {
			return 0, err
		}
		length := uint64(binary.LittleEndian.Uint32(sb[ext4JournalSize:]))<<32 | uint64(binary.LittleEndian.Uint32(sb[ext4JournalSize+4:]))
		if sb[ext4JournalBackup] == 1 && length>>40 == 0 {
			return size.Bytes(length) + replaySlack, nil
		}
	case XFS:
		log, err := readXFSLog(f)
		if err != nil {
			return 0, err
		}
		return size.Bytes(log.blocks)*xfsBlock + replaySlack, nil
	}
	return replayUnknown, nil
}
