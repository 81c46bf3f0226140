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

// A device can be a part of another one and show the same label: a path of a
// multipath map, a mirror's member, the disk below a cache. Only the whole is
// the physical volume, also while it fails or is not there yet: what is written
// past it is lost, or different on each part.

// part is a device that shows a physical volume and is none by itself.
type part struct {
	*disk
	why error
}

// multipathProperty is how udev's rules mark the paths of multipath maps, from
// before multipathd makes the map.
const multipathProperty = "E:DM_MULTIPATH_DEVICE_PATH=1"

// wholeUUIDs begin the UUIDs of mapped devices that take a disk as a whole.
var wholeUUIDs = []string{"mpath-", "CRYPT-", "DMRAID-"}

// partOf returns an error if the device is a part of another one. It believes
// nothing of what a logical volume's user can write.
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
		dirs = append(dirs, whole+"/..") // of the disk, which may be a part
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
		return is("a path of a multipath map, says udev")
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

// ofMultipath reports whether udev has marked the device as a path of a map.
func (i identity) ofMultipath() bool {
	text, err := os.ReadFile(fmt.Sprintf("/run/udev/data/b%d:%d", unix.Major(i.dev), unix.Minor(i.dev)))
	return err == nil && slices.Contains(strings.Split(string(text), "\n"), multipathProperty)
}

// heldBy names the holder with that directory in sysfs if the device is a part
// of it. Logical volumes lie on a physical volume; a device that somebody made by
// hand may map any piece of it.
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

// shownBy reports whether a mapped device shows p's label, or cannot be asked.
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

// memberSignature names what the device is a member of whose superblock lies
// beyond the physical volume's end: there no logical volume is.
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

// mapPaths begin the paths of devices that are made of others.
var mapPaths = []string{"/dev/mapper/", "/dev/dm-", "/dev/md", "/dev/drbd", "/dev/bcache", "/dev/disk/by-id/dm-", "/dev/disk/by-id/md-"}

// belowMap reports whether the physical volume was used by a map, which is not there,
// and p is a plain disk.
func (p *disk) belowMap(pv *PV) bool {
	if p.id.ino != 0 || p.inUse() || !slices.ContainsFunc(mapPaths, func(prefix string) bool { return strings.HasPrefix(pv.hint, prefix) }) {
		return false
	}
	b := belowOf(p.id.dev)
	_, err := os.Stat(filepath.Join(b.dir, "partition"))
	return len(b.devices) == 0 || b.file || err == nil
}

// readLine reads a file of sysfs.
func readLine(path string) (string, error) {
	text, err := os.ReadFile(path)
	return strings.TrimSpace(string(text)), err
}
