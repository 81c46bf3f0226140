package filesystem

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
)

// memory is a device that has only a btrfs superblock.
type memory struct {
	sb     [btrfsSuperLen]byte
	writes int
	synced bool
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if off != btrfsSuperOffset || len(p) != btrfsSuperLen {
		return 0, io.ErrUnexpectedEOF
	}
	return copy(p, m.sb[:]), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if off != btrfsSuperOffset || len(p) != btrfsSuperLen {
		return 0, errors.New("write beside the primary superblock")
	}
	m.writes++
	m.synced = false
	return copy(m.sb[:], p), nil
}

func (m *memory) Sync() error {
	m.synced = true
	return nil
}

func (m *memory) seal() {
	if sum := btrfsSums[binary.LittleEndian.Uint16(m.sb[btrfsCsumType:])]; sum != nil {
		copy(m.sb[btrfsCsum:btrfsFsid], sum(m.sb[btrfsFsid:]))
	}
}

func newMemory() *memory {
	m := &memory{}
	copy(m.sb[0x40:], btrfsMagic)
	copy(m.sb[btrfsFsid:], "0123456789abcdef")
	binary.LittleEndian.PutUint64(m.sb[btrfsNumDevices:], 1)
	binary.LittleEndian.PutUint64(m.sb[btrfsIncompat:], 0x361)
	m.seal()
	return m
}

// A change of the fsid is one synced write, and a repeated change writes
// nothing.
func TestSetFsid_repeated(t *testing.T) {
	m := newMemory()
	first, second := fsidOf("copy"), fsidOf("copy of the copy")
	for _, want := range [][]byte{first, first, second} {
		if err := setFsid(m, want); err != nil {
			t.Fatal(err)
		}
		sb, err := readBtrfsSuper(m)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(sb[btrfsFsid:btrfsFsid+16], want) {
			t.Errorf("fsid is %x, want %x", sb[btrfsFsid:btrfsFsid+16], want)
		}
		if got := string(sb[btrfsMetadataID : btrfsMetadataID+16]); got != "0123456789abcdef" {
			t.Errorf("metadata_uuid is %q, want the first fsid", got)
		}
		if got := binary.LittleEndian.Uint64(sb[btrfsIncompat:]); got != 0x361|btrfsMetadataUUID {
			t.Errorf("incompat flags %#x", got)
		}
		if !m.synced {
			t.Error("not synced")
		}
	}
	if m.writes != 2 {
		t.Errorf("%d writes for two changes: a change must be one write", m.writes)
	}
}

// A superblock that cannot be changed safely is refused and stays as it is.
func TestSetFsid_refused(t *testing.T) {
	for name, damage := range map[string]func(*memory){
		"no magic":         func(m *memory) { m.sb[0x40] = 'x'; m.seal() },
		"wrong checksum":   func(m *memory) { m.sb[0x100] ^= 1 },
		"unknown checksum": func(m *memory) { m.sb[btrfsCsumType] = 4; m.seal() },
		"two devices":      func(m *memory) { m.sb[btrfsNumDevices] = 2; m.seal() },
		"btrfstune -u cut": func(m *memory) { m.sb[btrfsFlags+4] = 1 << 3; m.seal() },
		"btrfstune -m cut": func(m *memory) { m.sb[btrfsFlags+4] = 1 << 4; m.seal() },
		"seed":             func(m *memory) { m.sb[btrfsFlags+4] = 1; m.seal() },
	} {
		m := newMemory()
		damage(m)
		before := m.sb
		if err := setFsid(m, fsidOf("copy")); err == nil || !errors.Is(err, ErrContent) && name != "no magic" {
			t.Errorf("%s: %v", name, err)
		}
		if m.sb != before {
			t.Errorf("%s: superblock was changed", name)
		}
	}
}
