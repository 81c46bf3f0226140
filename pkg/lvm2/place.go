package lvm2

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// place is the device by which a physical volume is used. A disk may come back as
// another device; something that only looks like it must not take its place.
type place struct {
	id    identity
	path  string
	disk  string // which disk it is by what its hardware tells; empty: that tells nothing
	below map[uint64]bool
}

func placeOf(d *device) place {
	p := place{id: d.id, path: d.path, below: map[uint64]bool{}}
	if d.id.ino != 0 {
		return p
	}
	p.disk = hardware(d.id)
	descend(d.id.dev, nil, func(dev uint64, _ below) {
		if dev != d.id.dev {
			p.below[dev] = true
		}
	})
	return p
}

// taken returns an error if d must not take the place: it is not the disk that
// was there, or that may be there still.
func (p place) taken(d *device) error {
	if p.id.ino != 0 || d.id.ino != 0 || d.id == p.id || d.above(&device{id: p.id}) {
		return nil
	}
	switch disk := hardware(d.id); {
	case p.there():
		return fmt.Errorf("device %s shows the physical volume that is used by %s: %w", d.path, p.path, ErrDuplicatePV)
	case p.below[d.id.dev]:
		return fmt.Errorf("device %s is %w: the physical volume was used by %s, which lay on it", d.path, ErrPart, p.path)
	case p.disk != "" && disk != "" && p.disk != disk:
		return fmt.Errorf("device %s shows the physical volume that was on %s, and is another disk (%s, that was %s): %w: restart the driver if it has taken its place",
			d.path, p.path, disk, p.disk, ErrDuplicatePV)
	}
	return nil
}

// there reports whether the device still is what it was.
func (p place) there() bool {
	sectors, err := readLine(filepath.Join(p.id.dir(), "size"))
	return err == nil && sectors != "0" && diskSequence(p.id.dev) == p.id.seq && hardware(p.id) == p.disk
}

// diskSequence returns the number that the kernel gives to each disk that it
// sees, and to each content of a drive or loop device; 0 if it gives none (before
// 5.15). A mapped device is what its name says, whatever its tables become.
func diskSequence(dev uint64) uint64 {
	dir := identity{dev: dev}.dir()
	if _, err := os.Stat(dir + "/dm"); err == nil {
		return 0
	}
	for _, path := range []string{dir + "/diskseq", dir + "/../diskseq"} { // of a partition's disk
		if text, err := readLine(path); err == nil {
			n, _ := strconv.ParseUint(text, 10, 64)
			return n
		}
	}
	return 0
}

// hardware says which disk a block device is, whatever its number is; empty if
// nothing tells.
func hardware(id identity) string {
	dir := id.dir()
	if part, err := readLine(dir + "/partition"); err == nil {
		var disk uint64
		if disk, err = readNumber(dir + "/../dev"); err != nil {
			return ""
		}
		whole := hardware(identity{dev: disk})
		if whole == "" {
			return ""
		}
		return whole + " partition " + part
	}
	if name, err := readLine(dir + "/dm/name"); err == nil {
		uuid, _ := readLine(dir + "/dm/uuid")
		return "map " + cmp.Or(uuid, name)
	}
	if unix.Major(id.dev) == loopMajor {
		return fileOf(dir)
	}
	for _, name := range []string{"wwid", "device/wwid", "uuid", "md/uuid", "serial", "device/serial", "device/cid"} {
		if text, err := readLine(filepath.Join(dir, name)); err == nil && text != "" {
			return text
		}
	}
	return ""
}

// fileOf identifies the file of a loop device.
func fileOf(dir string) string {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return ""
	}
	f, err := os.Open(filepath.Join("/dev", filepath.Base(real)))
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return ""
	}
	return fmt.Sprintf("file %d of device %d:%d from byte %d", info.Inode, unix.Major(info.Device), unix.Minor(info.Device), info.Offset)
}
