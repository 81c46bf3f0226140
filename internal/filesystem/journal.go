package filesystem

import (
	"encoding/binary"
	"errors"
	"os"
)

// Fields of the superblocks of ext4 and of its journal, as in the kernel's
// fs/ext4/ext4.h and include/linux/jbd2.h.
const (
	ext4LogBlockSize  = 0x18  // 32 bits: log2 of the block size in KiB
	ext4JournalBlocks = 0x10c // the block map of the journal's inode, in the inode's format
	ext4Extents       = 0xf30a

	journalMagic = 0xc03b3998
	journalErrno = 0x20
)

var errNoJournal = errors.New("the journal is not found")

// journalAborted reports whether the kernel has aborted the journal of a mounted
// ext4 after an error, so that nothing can be written any more. The kernel records
// this in the journal's superblock, which it keeps in memory. A write would also
// show it, but the health check must not write every ten seconds. Errors:
// errNoJournal.
func journalAborted(device string) (bool, error) {
	f, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer f.Close()
	sb, err := readExt4Super(f)
	if err != nil {
		return false, err
	}
	block, ok := journalStart(sb)
	if !ok {
		return false, errNoJournal
	}
	journal := make([]byte, superLen)
	if _, err := f.ReadAt(journal, int64(block)<<(10+binary.LittleEndian.Uint32(sb[ext4LogBlockSize:])&0xf)); err != nil {
		return false, err
	}
	if binary.BigEndian.Uint32(journal) != journalMagic {
		return false, errNoJournal
	}
	return binary.BigEndian.Uint32(journal[journalErrno:]) != 0, nil
}

// journalStart returns the first block of the journal, and reports whether it is
// known: the superblock must have a copy of the journal's inode.
func journalStart(sb []byte) (uint64, bool) {
	little := binary.LittleEndian
	if sb[ext4JournalBackup] != 1 || little.Uint32(sb[ext4Compat:])&ext4HasJournal == 0 {
		return 0, false
	}
	blocks := sb[ext4JournalBlocks:]
	if little.Uint16(blocks) != ext4Extents {
		return uint64(little.Uint32(blocks)), true
	}
	entries, depth, first := little.Uint16(blocks[2:]), little.Uint16(blocks[6:]), blocks[12:]
	start := uint64(little.Uint16(first[6:]))<<32 | uint64(little.Uint32(first[8:]))
	return start, entries > 0 && depth == 0 && little.Uint32(first) == 0
}
