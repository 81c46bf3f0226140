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

// deviceID is how lvm2's devices file knows a device: by an id that stays where
// there is one, else by its name.
type deviceID struct {
	kind, name string
	part       int // number of a partition, 0 of a whole device
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

// idDevice is a device, to be asked for its ids in sysfs.
type idDevice struct {
	node string   // its name in /dev, by which lvm2 calls it
	real string   // the same, without links
	dirs []string // of it, and of the disk that it is a partition of
	part int
}

// idDeviceOf looks up a block device; of a regular file only the name is known.
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

// raw reads a file of the device in sysfs, or of its disk.
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

// id returns the device's id of a kind as lvm2 writes it, empty if it has none.
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
			id = d.value("wwid") // of NVMe
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

// preferred returns the id by which lvm2 enters the device. Versions of lvm2
// before 2.03.24, which all others than modern may be, do not agree on ids with blanks, on
// QEMU's and on where a serial number is found: then the name is what all understand.
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

// is reports whether an entry of the devices file is of the device.
func (d *idDevice) is(e deviceID) bool {
	if e.name == "" || e.name == "." || e.part != d.part {
		return false
	}
	return e.kind == idName && (e.name == d.node || e.name == d.real) || d.stays(e)
}

// stays reports whether the device has the id of an entry, which is not its name.
func (d *idDevice) stays(e deviceID) bool {
	id := d.id(e.kind)
	return e.kind != idName && id != "" && (id == e.name || oneBlank(id) == oneBlank(e.name))
}

// plainID is an id of the hardware as lvm2 writes it: without blanks at the ends, others
// are underscores; several together are one in a T10 id.
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

// oneBlank makes ids alike that versions of lvm2 write differently.
func oneBlank(id string) string {
	for strings.Contains(id, "__") {
		id = strings.ReplaceAll(id, "__", "_")
	}
	return strings.Trim(id, "_")
}

// oneWord replaces what would end a field.
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
