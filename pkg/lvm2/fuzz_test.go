//go:build !kernel

package lvm2

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// memoryFile is a disk in memory.
type memoryFile struct {
	*bytes.Reader
	io.WriterAt
}

func (memoryFile) Sync() error  { return nil }
func (memoryFile) Close() error { return nil }

// FuzzDevicesFile: a devices file with any content is kept line by line, but for its
// version, or refused. An entry that is written is read again.
func FuzzDevicesFile(f *testing.F) {
	f.Add("# LVM uses devices listed in this file.\n# HASH=1\nVERSION=1.1.9\nIDTYPE=sys_wwid IDNAME=naa.5 DEVNAME=/dev/sda PVID=abc PART=1\n", "sys_wwid", "naa.5", "/dev/sda", 3)
	f.Add("VERSION=2.0.0\n", "devname", "/dev/loop0", "/dev/loop0", 0)
	f.Fuzz(func(t *testing.T, text, kind, name, node string, part int) {
		next, err := appendDevices(text, nil)
		if err == nil {
			keep := func(text string) (lines []string) {
				for line := range strings.Lines(text) {
					if line = strings.TrimSuffix(line, "\n"); !strings.HasPrefix(line, "VERSION=") {
						lines = append(lines, line)
					}
				}
				return lines
			}
			if !slices.Equal(keep(text), keep(next)) || !strings.Contains("\n"+next, "\nVERSION=") {
				t.Errorf("%q became %q", text, next)
			}
			if again, err := appendDevices(next, nil); err != nil || !slices.Equal(keep(again), keep(next)) {
				t.Errorf("%q became %q, and then %q, %v", text, next, again, err)
			}
		}
		for line := range strings.Lines(text) {
			parseEntry(line)
		}
		for _, word := range []string{kind, name, node} {
			if len(strings.Fields(word)) != 1 || strings.Fields(word)[0] != word {
				return // ids are single words: see oneWord and plainID
			}
		}
		id := deviceID{kind, name, max(0, part)}
		if got, pv := parseEntry(entryOf(id, node, "pv")); got != id || pv != "pv" {
			t.Errorf("%+v became %+v of %s", id, got, pv)
		}
	})
}

// FuzzDeviceID: an id that sysfs tells becomes at most one word, which lvm2 can read in
// its devices file.
func FuzzDeviceID(f *testing.F) {
	f.Add([]byte("naa.5000c500a1b2c3d4 \n"))
	f.Add([]byte("\x00\x80\x00\x08 SERIAL 1"))
	f.Add([]byte("t10.ATA     QEMU HARDDISK \"1\"\t"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		ids := map[string]string{"id": plainID(string(raw)), "serial": plainID(serialOfPage(raw))}
		if !slices.ContainsFunc(raw, func(b byte) bool { return b > '~' }) { // a UUID of device-mapper
			ids["uuid"] = oneWord(string(raw))
		}
		for what, id := range ids {
			if len(strings.Fields(id)) > 1 || strings.ContainsAny(id, "\n\r\t ") || len(id) > len(raw) {
				t.Errorf("the %s of %q is %q", what, raw, id)
			}
		}
	})
}

// FuzzSignature: a disk with a known magic number at its place is never taken for
// blank, whatever else is on it, and a disk of any size and content is read within
// its bounds.
func FuzzSignature(f *testing.F) {
	f.Add(uint16(9), uint16(5), []byte("LABELONE"), uint16(512))
	f.Add(uint16(2048), uint16(47), []byte("\xfc\x4e\x2b\xa9"), uint16(0))
	f.Add(uint16(300), uint16(60), []byte("SWAPSPACE2"), uint16(4086))
	f.Fuzz(func(t *testing.T, sectors, which uint16, content []byte, at uint16) {
		disk := make([]byte, int(sectors%4096)*size.SectorBytes)
		if int(at) < len(disk) {
			copy(disk[at:], content)
		}
		m := magics[int(which)%len(magics)]
		place := m.at
		if place < 0 {
			place += int64(len(disk))
		}
		known := place >= 0 && place+int64(len(m.bytes)) <= int64(len(disk))
		if known {
			copy(disk[place:], m.bytes)
		}
		d := &device{path: "disk", file: memoryFile{Reader: bytes.NewReader(disk)}, size: size.Bytes(len(disk)), unit: size.SectorBytes}
		found, err := d.signature()
		if err != nil || known && found == "" {
			t.Errorf("%s at %d of %d bytes: found %q, %v", m.name, m.at, len(disk), found, err)
		}
	})
}
