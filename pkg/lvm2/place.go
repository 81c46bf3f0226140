package lvm2

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// place is the device on which a physical volume was last used. The disk may return
// as another device, but a device that only shows the same physical volume must not
// replace it.
type place struct {
	id    identity
	path  string
	disk  string          // result of hardware
	below map[uint64]bool // devices below the device, by number
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

// taken returns an error if d must not replace the device: the device still exists,
// or it lay on d, or d is another disk.
func (p place) taken(d *device) error {
	if p.id.ino != 0 || d.id.ino != 0 || d.id == p.id || d.above(&device{id: p.id}) {
		return nil
	}
	switch disk := hardware(d.id); {
	case p.there():
		return fmt.Errorf("device %s shows the physical volume that %s uses: %w", d.path, p.path, ErrDuplicatePV)
	case p.below[d.id.dev]:
		return fmt.Errorf("device %s is %w: the physical volume was used by %s, which lay on it", d.path, ErrPart, p.path)
	case p.disk != "" && disk != "" && p.disk != disk:
		return fmt.Errorf("device %s shows the physical volume that was on %s, but is another disk (%s instead of %s): %w; if it has replaced that disk, restart the driver",
			d.path, p.path, disk, p.disk, ErrDuplicatePV)
	}
	return nil
}

// there reports whether the device still exists and is the same disk.
func (p place) there() bool {
	sectors, err := readLine(filepath.Join(p.id.dir(), "size"))
	return err == nil && sectors != "0" && diskSequence(p.id.dev) == p.id.seq && hardware(p.id) == p.disk
}

// diskSequence returns the kernel's sequence number of a disk: a new number for each
// disk that appears, and for each medium of a drive or file of a loop device. It
// returns 0 if there is none: for kernels before 5.15, and for mapped devices, which
// stay the same device when their tables change.
func diskSequence(dev uint64) uint64 {
	dir := identity{dev: dev}.dir()
	if _, err := os.Stat(dir + "/dm"); err == nil {
		return 0
	}
	for _, path := range []string{dir + "/diskseq", dir + "/../diskseq"} { // the second: a partition's disk
		if text, err := readLine(path); err == nil {
			n, _ := strconv.ParseUint(text, 10, 64)
			return n
		}
	}
	return 0
}

// hardware identifies the disk of a block device independently of its device number.
// It returns "" if the disk has no identification.
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

// fileOf identifies the file of the loop device with the sysfs directory dir.
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
