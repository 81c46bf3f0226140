package filesystem

import (
	"bytes"
	"io"
	"testing"
)

// image is a device in memory.
type image struct{ b []byte }

func (m image) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m.b).ReadAt(p, off) }
func (m image) Sync() error                             { return nil }
func (m image) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m.b)) {
		return 0, io.ErrShortWrite
	}
	return copy(m.b[off:], p), nil
}

// A superblock with any content causes an error at most: tenants can write
// superblocks.
func FuzzSuperblocks(f *testing.F) {
	f.Add([]byte("XFSB"), uint8(1))
	f.Add(newXFS(64).image[:200], uint8(1))
	f.Add(bytes.Repeat([]byte{0xff}, 5000), uint8(0))
	f.Fuzz(func(t *testing.T, sb []byte, kind uint8) {
		b := make([]byte, 80<<10)
		fs := []string{Ext4, XFS, Btrfs}[kind%3]
		at := map[string]int{Ext4: ext4SuperOffset, XFS: 0, Btrfs: btrfsSuperOffset}[fs]
		copy(b[at:], sb)
		switch fs {
		case Ext4:
			b[at+ext4Magic], b[at+ext4Magic+1] = 0x53, 0xef
		case XFS:
			copy(b[at:], "XFSB")
		case Btrfs:
			copy(b[at+0x40:], btrfsMagic)
		}
		m := image{b}
		if n, err := superblockSize(m, fs); err == nil && n <= 0 {
			t.Errorf("a file system of %d bytes", n)
		}
		_, _ = clean(m, fs)
		if fs != Btrfs {
			return
		}
		super := b[btrfsSuperOffset:][:btrfsSuperLen]
		if sum := btrfsSums[uint16(super[btrfsCsumType])|uint16(super[btrfsCsumType+1])<<8]; sum != nil {
			copy(super[btrfsCsum:btrfsFsid], sum(super[btrfsFsid:]))
		}
		before := bytes.Clone(b)
		if setFsid(m, fsidOf("x")) != nil {
			if !bytes.Equal(before, b) {
				t.Error("it was refused and is changed")
			}
			return
		}
		before = bytes.Clone(b)
		if err := setFsid(m, fsidOf("x")); err != nil || !bytes.Equal(before, b) {
			t.Error("the second time is not like the first:", err)
		}
	})
}

// A log with any content causes no error and no panic.
func FuzzXFSLog(f *testing.F) {
	l := newXFS(64)
	l.write(62, 3, 62, superChange())
	f.Add(bytes.Clone(l.log()))
	f.Fuzz(func(t *testing.T, log []byte) {
		l := newXFS(64)
		copy(l.log(), log)
		if _, err := clean(l, XFS); err != nil {
			t.Error(err)
		}
	})
}

// No output of blkid is taken for a blank device.
func FuzzParseProbe(f *testing.F) {
	f.Add("TYPE=ext4\nUSAGE=filesystem\n")
	f.Fuzz(func(t *testing.T, out string) {
		got, err := parseProbe("d", out)
		if err == nil && got == "" {
			t.Error("nothing, without an error: a caller would format")
		}
	})
}
