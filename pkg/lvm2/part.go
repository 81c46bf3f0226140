package lvm2

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// A device can be a part of another device and show the same label: a path of a
// multipath map, a mirror's member, the disk below a cache. Only the whole device is
// the physical volume, also while it fails or does not exist yet: data that is
// written past the whole device is lost, or different on each part.

// part is a device that shows a physical volume but is a part of another device.
type part struct {
	*disk
	why error
}

// multipathProperty is the property with which udev's rules mark the paths of
// multipath maps, even before multipathd creates the map.
const multipathProperty = "E:DM_MULTIPATH_DEVICE_PATH=1"

// wholeUUIDs are prefixes of the UUIDs of mapped devices that use a whole disk.
var wholeUUIDs = []string{"mpath-", "CRYPT-", "DMRAID-"}

// partOf returns an error if the device is a part of another device. It ignores data
// that a user of a logical volume can write.
func (p *disk) partOf() error {
	if p.id.ino != 0 {
		return nil
	}
	is := func(what string) error {
		return fmt.Errorf("device %s is %w: %s", p.path, ErrPart, what)
	}
	whole := p.id.dir()
	dirs := []string{whole}
	if _, err := os.Stat(filepath.Join(whole, "partition")); err == nil {
		dirs = append(dirs, whole+"/..") // the disk may also be a part
	}
	for _, dir := range dirs {
		holders, _ := filepath.Glob(dir + "/holders/*")
		for _, h := range holders {
			if what := p.heldBy(h); what != "" {
				return is(what)
			}
		}
	}
	if p.id.ofMultipath() {
		return is("a path of a multipath map, according to udev")
	}
	found, err := p.memberSignature()
	if err != nil {
		return err
	}
	if found != "" {
		return is("it has the signature of a " + found)
	}
	return nil
}

// ofMultipath reports whether udev has marked the device as a path of a multipath
// map.
func (i identity) ofMultipath() bool {
	text, err := os.ReadFile(fmt.Sprintf("/run/udev/data/b%d:%d", unix.Major(i.dev), unix.Minor(i.dev)))
	return err == nil && slices.Contains(strings.Split(string(text), "\n"), multipathProperty)
}

// heldBy returns the name of the holder with the sysfs directory dir if the device is
// a part of that holder, and "" otherwise. Logical volumes lie on a physical volume,
// so p is not a part of them. Of mapped devices of unknown kinds, which may map any
// piece of p, it is a part only if they show its label.
func (p *disk) heldBy(dir string) string {
	name := filepath.Base(dir)
	uuid, err := readLine(filepath.Join(dir, "dm", "uuid"))
	if err != nil {
		return name
	}
	if strings.HasPrefix(uuid, dmPrefix) {
		return ""
	}
	whole := slices.ContainsFunc(wholeUUIDs, func(prefix string) bool { return strings.HasPrefix(uuid, prefix) })
	if !whole && !p.shownBy(dir) {
		return ""
	}
	called, _ := readLine(filepath.Join(dir, "dm", "name"))
	return fmt.Sprintf("%s (%s)", called, name)
}

// shownBy reports whether a mapped device shows p's label. It also returns true if
// the mapped device cannot be read.
func (p *disk) shownBy(dir string) bool {
	if suspended, err := readLine(filepath.Join(dir, "dm", "suspended")); err != nil || suspended != "0" {
		return true
	}
	d, err := openDevice(filepath.Join("/dev", filepath.Base(dir)), os.O_RDONLY)
	if err != nil {
		return true
	}
	defer d.file.Close()
	head, err := d.read(0, min(d.size, labelSectors*size.SectorBytes))
	if err != nil {
		return true
	}
	if len(head) < int(labelSectors*size.SectorBytes) {
		return false
	}
	l, err := findLabel(head)
	return err != nil || l != nil && l.id == p.label.id
}

// memberSignature returns the kind of device of which p is a member, by a superblock
// after the end of the physical volume, where no logical volume can write. It returns
// "" if there is none.
func (p *disk) memberSignature() (string, error) {
	if p.label.size == 0 || p.label.size >= p.size {
		return "", nil
	}
	window := min(signatureWindow, p.size-p.label.size)
	tail, err := p.read(p.size-window, window)
	if err != nil {
		return "", err
	}
	for _, m := range magics {
		at := len(tail) + int(m.at)
		if m.at < 0 && at >= 0 && (strings.Contains(m.name, "RAID") || strings.Contains(m.name, "DRBD")) && strings.HasPrefix(string(tail[at:]), m.bytes) {
			return m.name, nil
		}
	}
	return raidSignature(tail, p.size), nil
}

// mapPaths are prefixes of the paths of devices that consist of other devices.
var mapPaths = []string{"/dev/mapper/", "/dev/dm-", "/dev/md", "/dev/drbd", "/dev/bcache", "/dev/disk/by-id/dm-", "/dev/disk/by-id/md-"}

// belowMap reports whether p is a plain disk although the physical volume was last
// used by a map, which does not exist now.
func (p *disk) belowMap(pv *PV) bool {
	if p.id.ino != 0 || p.inUse() || !slices.ContainsFunc(mapPaths, func(prefix string) bool { return strings.HasPrefix(pv.hint, prefix) }) {
		return false
	}
	b := belowOf(p.id.dev)
	_, err := os.Stat(filepath.Join(b.dir, "partition"))
	return len(b.devices) == 0 || b.file || err == nil
}

// readLine returns the content of a file of sysfs without the newline.
func readLine(path string) (string, error) {
	text, err := os.ReadFile(path)
	return strings.TrimSpace(string(text)), err
}
