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

	"github.com/cespare/xxhash/v2"
	"golang.org/x/crypto/blake2b"
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
	btrfsChangingFsid = 3 << 35 // flags: btrfstune was interrupted while it changed the fsid
	btrfsSeeding      = 1 << 32 // flag: read-only seed of other file systems
)

// btrfsSums has the checksums that mkfs.btrfs --csum offers, by their number in
// the superblock.
var btrfsSums = map[uint16]func([]byte) []byte{
	0: func(b []byte) []byte {
		return binary.LittleEndian.AppendUint32(nil, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	},
	1: func(b []byte) []byte { return binary.LittleEndian.AppendUint64(nil, xxhash.Sum64(b)) },
	2: func(b []byte) []byte { sum := sha256.Sum256(b); return sum[:] },
	3: func(b []byte) []byte { sum := blake2b.Sum256(b); return sum[:] },
}

var btrfsMagic = []byte("_BHRfS_M")

// SetIdentity gives a writable copy its own identity, derived from seed, so that
// the copy can be mounted beside its source. Only btrfs needs this: it refuses to
// mount a second file system with the same fsid. For xfs a mount option is
// enough. SetIdentity does nothing to a device that is not a copy. A second call
// with the same seed changes nothing. An interruption at any point leaves a file
// system with the old or the new fsid. Errors: ErrContent, ErrBusy.
//
// SetIdentity changes the fsid like btrfstune -M (the metadata_uuid feature, Linux
// 5.0), but with a single write. btrfstune commits three times, and refuses to
// continue after an interruption between the commits.
func (d Device) SetIdentity(seed string) (err error) {
	if d.Type != Btrfs || d.ReadOnly || !d.Copy {
		return nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("change the fsid of %s: %w", d.Path, err)
		}
	}()
	if done, err := d.hasFsid(fsidOf(seed)); done || err != nil {
		return err
	}
	f, err := os.OpenFile(d.Path, os.O_RDWR|os.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return setFsid(f, fsidOf(seed))
}

// hasFsid reports whether the file system already has the fsid. The file system
// may be mounted.
func (d Device) hasFsid(fsid []byte) (bool, error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	sb, err := readBtrfsSuper(f)
	return err == nil && bytes.Equal(sb[btrfsFsid:btrfsFsid+16], fsid), err
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
	sum := btrfsSums[little.Uint16(sb[btrfsCsumType:])]
	switch flags := little.Uint64(sb[btrfsFlags:]); {
	case sum == nil:
		return fmt.Errorf("%w: unknown checksum type %d", ErrContent, little.Uint16(sb[btrfsCsumType:]))
	case !bytes.HasPrefix(sb, sum(sb[btrfsFsid:])):
		return fmt.Errorf("%w: the superblock's checksum is wrong", ErrContent)
	case flags&btrfsChangingFsid != 0:
		return fmt.Errorf("%w: btrfstune was interrupted while it changed the fsid (flags %#x); complete the change on the source first", ErrContent, flags)
	}
	if err := checkSingleDevice(sb); err != nil {
		return err
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
	copy(sb[btrfsCsum:], sum(sb[btrfsFsid:]))
	if _, err := f.WriteAt(sb, btrfsSuperOffset); err != nil {
		return err
	}
	// The first commit after the mount writes the mirrors of the superblock. Until
	// then they keep the old fsid, and nothing reads them.
	return f.Sync()
}

// checkSingleDevice refuses a btrfs that is not complete on its device or cannot
// be written: a file system of several devices, and the seed of other file
// systems. Errors: ErrContent.
func checkSingleDevice(sb []byte) error {
	little := binary.LittleEndian
	if n := little.Uint64(sb[btrfsNumDevices:]); n != 1 {
		return fmt.Errorf("%w: a btrfs of %d devices; a volume has only one device", ErrContent, n)
	}
	if little.Uint64(sb[btrfsFlags:])&btrfsSeeding != 0 {
		return fmt.Errorf("%w: it is the seed of other btrfs file systems; clear the seed flag with btrfstune -S 0", ErrContent)
	}
	return nil
}

// readBtrfsSuper reads the primary superblock. It does not verify the checksum:
// the kernel does at the mount, and setFsid does before it writes. Errors:
// errNoSuperblock.
func readBtrfsSuper(r io.ReaderAt) ([]byte, error) {
	sb := make([]byte, btrfsSuperLen)
	if _, err := r.ReadAt(sb, btrfsSuperOffset); err != nil {
		return nil, err
	}
	if !bytes.Equal(sb[0x40:0x48], btrfsMagic) {
		return nil, errNoSuperblock
	}
	return sb, nil
}

// checkBtrfs checks that a btrfs can be mounted beside the mounted file systems.
// Since Linux 6.7 the kernel distinguishes file systems with the same fsid. Errors:
// ErrContent if the file system is not complete on the device; ErrDuplicate if
// another device with the same fsid is mounted and the kernel is older.
func (d Device) checkBtrfs() error {
	f, err := os.Open(d.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	sb, err := readBtrfsSuper(f)
	if err != nil {
		return fmt.Errorf("read btrfs superblock of %s: %w", d.Path, err)
	}
	if err := checkSingleDevice(sb); err != nil {
		return err
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
	return fmt.Errorf("%w: btrfs fsid %s of %s is in use by %s; unmount that device first, or make the copy writable",
		ErrDuplicate, uuid, d.Path, names(mounted))
}

func names(entries []fs.DirEntry) string {
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return strings.Join(list, ", ")
}
