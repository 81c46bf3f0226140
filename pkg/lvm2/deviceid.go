package lvm2

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// deviceID is the key of an entry of lvm2's devices file: a persistent id of the
// device or, if it has none, its name.
type deviceID struct {
	kind, name string
	part       int // number of the partition; 0: a whole device
}

// Kinds of ids, as in lvm2's devices file.
const (
	idWWID   = "sys_wwid"
	idSerial = "sys_serial"
	idMpath  = "mpath_uuid"
	idCrypt  = "crypt_uuid"
	idLVMLV  = "lvmlv_uuid"
	idMD     = "md_uuid"
	idLoop   = "loop_file"
	idName   = "devname"
)

// idDevice is a device whose ids can be read from sysfs.
type idDevice struct {
	node string   // lvm2's path of the device
	real string   // path without links
	dirs []string // sysfs directories of the device and, for a partition, of its disk
	part int
}

// idDeviceOf looks up a block device. A regular file has only a name.
func idDeviceOf(path string) (*idDevice, error) {
	node, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(node)
	if err != nil {
		return nil, err
	}
	id, err := identify(info)
	if err != nil {
		return nil, err
	}
	d := &idDevice{node: node, real: node}
	if id.ino != 0 {
		return d, nil
	}
	dir, err := filepath.EvalSymlinks(id.dir())
	if err != nil {
		return nil, err
	}
	d.dirs = []string{dir}
	if name := d.value("dm/name"); name != "" {
		d.node = "/dev/mapper/" + name
	}
	if n, err := strconv.Atoi(d.value("partition")); err == nil {
		d.part, d.dirs = n, append(d.dirs, filepath.Dir(dir))
	}
	return d, nil
}

// raw reads a file of the device, or of its disk, in sysfs.
func (d *idDevice) raw(file string) []byte {
	for _, dir := range d.dirs {
		if b, err := os.ReadFile(filepath.Join(dir, file)); err == nil && len(bytes.TrimSpace(b)) > 0 {
			return b
		}
	}
	return nil
}

func (d *idDevice) value(file string) string {
	line, _, _ := strings.Cut(string(d.raw(file)), "\n")
	return line
}

// id returns the device's id of a kind, in lvm2's format, and "" if it has none.
func (d *idDevice) id(kind string) string {
	uuid := func(prefix string) string {
		id := d.value("dm/uuid")
		_, of, partition := strings.Cut(id, "-") // "part1-mpath-..."
		if strings.HasPrefix(id, prefix) || partition && strings.HasPrefix(id, "part") && strings.HasPrefix(of, prefix) {
			return oneWord(id)
		}
		return ""
	}
	switch kind {
	case idWWID:
		id := d.value("device/wwid")
		if id == "" {
			id = d.value("wwid") // NVMe
		}
		return plainID(id)
	case idSerial:
		if id := plainID(d.value("device/serial")); id != "" {
			return id
		}
		if id := plainID(serialOfPage(d.raw("device/vpd_pg80"))); id != "" {
			return id
		}
		if strings.HasPrefix(d.node, "/dev/vd") {
			return plainID(d.value("serial"))
		}
	case idMpath:
		return uuid("mpath-")
	case idCrypt:
		return uuid("CRYPT-")
	case idLVMLV:
		return uuid(dmPrefix)
	case idMD:
		return oneWord(d.value("md/uuid"))
	case idLoop:
		if file := d.value("loop/backing_file"); !strings.Contains(file, "(deleted)") {
			return oneWord(file)
		}
	case idName:
		return d.node
	}
	return ""
}

// preferred returns the id under which lvm2 enters the device into the devices file.
// If modern is false, lvm2 may be older than 2.03.24. The older versions disagree
// about ids with blanks, about QEMU's ids, and about the source of serial numbers; for
// such ids, preferred returns the name, which all versions understand.
func (d *idDevice) preferred(modern bool) deviceID {
	kinds := []string{idWWID, idSerial}
	switch {
	case len(d.dirs) == 0:
		kinds = nil
	case d.raw("dm/uuid") != nil || d.raw("dm/name") != nil:
		kinds = []string{idMpath, idCrypt, idLVMLV, idWWID, idSerial}
	case d.major() == loopMajor:
		kinds = []string{idLoop}
	case d.raw("md/uuid") != nil:
		kinds = []string{idMD}
	}
	for _, kind := range kinds {
		id := d.id(kind)
		if id != "" && (modern || d.agreed(kind, id)) {
			return deviceID{kind, id, d.part}
		}
		if id != "" {
			break
		}
	}
	return deviceID{idName, d.node, d.part}
}

// agreed reports whether all versions of lvm2 have the same id of a kind.
func (d *idDevice) agreed(kind, id string) bool {
	switch kind {
	case idWWID:
		return !strings.ContainsAny(d.value("device/wwid")+d.value("wwid"), " ") && !strings.Contains(id, "QEMU")
	case idSerial:
		return d.value("device/serial") == id
	}
	return true
}

func (d *idDevice) major() uint32 {
	dev, err := readNumber(filepath.Join(d.dirs[0], "dev"))
	if err != nil {
		return 0
	}
	return unix.Major(dev)
}

// is reports whether e is the key of the device's entry in the devices file.
func (d *idDevice) is(e deviceID) bool {
	if e.name == "" || e.name == "." || e.part != d.part {
		return false
	}
	return e.kind == idName && (e.name == d.node || e.name == d.real) || d.stays(e)
}

// stays reports whether e is a persistent id of the device, and not its name.
func (d *idDevice) stays(e deviceID) bool {
	id := d.id(e.kind)
	return e.kind != idName && id != "" && (id == e.name || oneBlank(id) == oneBlank(e.name))
}

// plainID returns an id of the hardware in lvm2's format: without blanks at the ends,
// and with underscores for other blanks. In a T10 id, adjacent underscores become a
// single underscore.
func plainID(id string) string {
	id = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' {
			return -1
		}
		return r
	}, id)
	id = strings.ReplaceAll(strings.Trim(id, " "), " ", "_")
	id = strings.Trim(id, "_")
	if strings.HasPrefix(id, "t10") {
		id = oneBlank(id)
	}
	return id
}

// oneBlank returns the same string for all forms in which versions of lvm2 write an
// id: with single underscores, and none at the ends.
func oneBlank(id string) string {
	for strings.Contains(id, "__") {
		id = strings.ReplaceAll(id, "__", "_")
	}
	return strings.Trim(id, "_")
}

// oneWord replaces the characters that would end a field of the devices file.
func oneWord(id string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r == '"' || r == 0x7f {
			return '_'
		}
		return r
	}, id)
}

// serialOfPage returns the serial number in SCSI's vital product data, page 80.
func serialOfPage(page []byte) string {
	const head = 4
	if len(page) < head || page[1] != 0x80 {
		return ""
	}
	n := int(binary.BigEndian.Uint16(page[2:]))
	return string(page[head:min(head+n, len(page))])
}
