package filesystem

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The btrfs superblock, as in the kernel's include/uapi/linux/btrfs_tree.h.
const (
	btrfsSuperOffset = 64 << 10
	btrfsSuperLen    = 4096
	btrfsCsum        = 0x00 // 32 bytes, over the rest of the block
	btrfsFsid        = 0x20 // 16 bytes
	btrfsFlags       = 0x38
	btrfsNumDevices  = 0x88
	btrfsIncompat    = 0xbc
	btrfsCsumType    = 0xc4
	btrfsMetadataID  = 0x23b // 16 bytes

	btrfsMetadataUUID = 1 << 10 // incompatible feature: blocks carry metadata_uuid, not fsid
	btrfsChangingFsid = 3 << 35 // flags: a rewrite by btrfstune was interrupted
	btrfsSeeding      = 1 << 32 // flag: read-only seed of other file systems
	btrfsCsumCRC32C   = 0
)

var btrfsMagic = []byte("_BHRfS_M")

// SetIdentity gives a writable copy an identity of its own, derived from seed,
// so that it can be mounted beside its source. Only btrfs needs it: it refuses
// to mount a second file system of the same fsid, for xfs a mount option
// suffices. Calling it again with the same seed changes nothing, and an
// interruption at any point leaves a file system with the old or the new fsid.
//
// The fsid is changed as btrfstune -M changes it (the metadata_uuid feature,
// Linux 5.0), but with a single write: btrfstune commits three times, and
// refuses to go on where it was interrupted in between.
func (d Device) SetIdentity(seed string) error {
	if d.Type != Btrfs || d.ReadOnly {
		return nil
	}
	f, err := os.OpenFile(d.Path, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		return fmt.Errorf("change the fsid of %s: %w", d.Path, err)
	}
	defer f.Close()
	if err := setFsid(f, fsidOf(seed)); err != nil {
		return fmt.Errorf("change the fsid of %s: %w", d.Path, err)
	}
	return nil
}

// fsidOf derives a UUID (RFC 9562, version 8) from a seed.
func fsidOf(seed string) []byte {
	sum := sha256.Sum256([]byte(seed))
	id := sum[:16]
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

// superFile is the part of *os.File that setFsid needs.
type superFile interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

func setFsid(f superFile, fsid []byte) error {
	sb, err := readBtrfsSuper(f)
	if err != nil {
		return err
	}
	little := binary.LittleEndian
	if flags := little.Uint64(sb[btrfsFlags:]); flags&(btrfsChangingFsid|btrfsSeeding) != 0 {
		return fmt.Errorf("it is a seed or in the middle of a change by btrfstune (flags %#x)", flags)
	}
	if n := little.Uint64(sb[btrfsNumDevices:]); n != 1 {
		return fmt.Errorf("it has %d devices", n)
	}
	if bytes.Equal(sb[btrfsFsid:btrfsFsid+16], fsid) {
		return nil
	}
	incompat := little.Uint64(sb[btrfsIncompat:])
	if incompat&btrfsMetadataUUID == 0 {
		copy(sb[btrfsMetadataID:], sb[btrfsFsid:btrfsFsid+16])
		little.PutUint64(sb[btrfsIncompat:], incompat|btrfsMetadataUUID)
	}
	copy(sb[btrfsFsid:], fsid)
	little.PutUint32(sb[btrfsCsum:], btrfsChecksum(sb))
	if _, err := f.WriteAt(sb, btrfsSuperOffset); err != nil {
		return err
	}
	// The mirrors are left to the first commit after the mount, which writes
	// them all: until then they say what they said, and nothing reads them.
	return f.Sync()
}

// readBtrfsSuper reads and checks the primary superblock.
func readBtrfsSuper(r io.ReaderAt) ([]byte, error) {
	sb := make([]byte, btrfsSuperLen)
	if _, err := r.ReadAt(sb, btrfsSuperOffset); err != nil {
		return nil, err
	}
	if !bytes.Equal(sb[0x40:0x48], btrfsMagic) {
		return nil, errNoSuperblock
	}
	if t := binary.LittleEndian.Uint16(sb[btrfsCsumType:]); t != btrfsCsumCRC32C {
		return nil, fmt.Errorf("checksum type %d is not supported, only crc32c", t)
	}
	if binary.LittleEndian.Uint32(sb[btrfsCsum:]) != btrfsChecksum(sb) {
		return nil, errors.New("superblock checksum is wrong")
	}
	return sb, nil
}

func btrfsChecksum(sb []byte) uint32 {
	return crc32.Checksum(sb[btrfsFsid:], crc32.MakeTable(crc32.Castagnoli))
}

// checkDuplicate returns ErrDuplicate if another device with the same fsid is
// mounted and the kernel cannot tell them apart. Since Linux 6.7 it can.
func (d Device) checkDuplicate() error {
	f, err := os.Open(d.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	sb, err := readBtrfsSuper(f)
	if err != nil {
		return fmt.Errorf("read btrfs superblock of %s: %w", d.Path, err)
	}
	id := sb[btrfsFsid : btrfsFsid+16]
	uuid := fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
	mounted, err := os.ReadDir(filepath.Join("/sys/fs/btrfs", uuid, "devices"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat("/sys/fs/btrfs/features/temp_fsid"); err == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("stat %s: %w", d.Path, err)
	}
	own := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	for _, dev := range mounted {
		number, err := os.ReadFile(filepath.Join("/sys/class/block", dev.Name(), "dev"))
		if err == nil && strings.TrimSpace(string(number)) == own {
			return nil
		}
	}
	return fmt.Errorf("%w: btrfs fsid %s of %s is in use by %s; unmount that one first, or make the copy writable",
		ErrDuplicate, uuid, d.Path, names(mounted))
}

func names(entries []fs.DirEntry) string {
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return strings.Join(list, ", ")
}
