package lvm2

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Layer is a block device in the result of Stack.
type Layer struct {
	Device    string // device number, such as "7:0"
	Group     string // volume group, if the device belongs to a logical volume; empty: none
	Suspended bool   // reads of the device block
	Opaque    bool   // the devices below it are not visible
}

// Stack returns the block device at path and all devices below it, each once, the
// device itself first. Below a device lie the components of a device-mapper or RAID
// device, the disk of a partition, and the disk with the file of a loop device. Stack
// reads no device, so a device that blocks reads cannot block Stack.
func Stack(path string) ([]Layer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("find what lies below a device: %w", err)
	}
	id, err := identify(info)
	if err != nil {
		return nil, fmt.Errorf("find what lies below %s: %w", path, err)
	}
	var out []Layer
	descend(id.dev, nil, func(dev uint64, b below) {
		out = append(out, b.layer(dev))
	})
	return out, nil
}

// below has the devices directly below a block device.
type below struct {
	dir     string   // sysfs directory of the device; empty: not a block device
	devices []uint64 // device numbers
	file    bool     // the device shows a file on devices, whose length and content differ
	opaque  bool     // the devices below are not visible
}

// descend calls yield once for dev and for each device below it.
func descend(dev uint64, seen map[uint64]bool, yield func(uint64, below)) {
	if seen == nil {
		seen = map[uint64]bool{}
	}
	if seen[dev] {
		return
	}
	seen[dev] = true
	b := belowOf(dev)
	yield(dev, b)
	for _, d := range b.devices {
		descend(d, seen, yield)
	}
}

// Majors of the kernel's devices.txt.
const (
	loopMajor = 7
	nbdMajor  = 43
)

func belowOf(dev uint64) below {
	b := below{dir: fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev))}
	dir, err := filepath.EvalSymlinks(b.dir)
	if err != nil {
		// The number of a file system on no device, or on several devices.
		on := devicesOf(dev)
		return below{devices: on, file: true, opaque: len(on) == 0 && !inMemory(dev)}
	}
	b.dir = dir
	numbers, _ := filepath.Glob(filepath.Join(dir, "slaves", "*", "dev"))
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		numbers = append(numbers, filepath.Join(filepath.Dir(dir), "dev"))
	}
	for _, path := range numbers {
		if d, err := readNumber(path); err == nil {
			b.devices = append(b.devices, d)
		}
	}
	name := filepath.Base(dir)
	switch {
	case unix.Major(dev) == nbdMajor, strings.HasPrefix(name, "ublkb"):
		b.opaque = true // a process serves the device
	case unix.Major(dev) == loopMajor && len(b.devices) == 0:
		if _, err := os.Stat(filepath.Join(dir, "loop")); err != nil {
			break // the loop device has no file
		}
		on, err := fileOfLoop(filepath.Join("/dev", name))
		if err != nil {
			b.opaque = true
			break
		}
		b.devices, b.file = []uint64{on}, true
	}
	return b
}

// fileOfLoop returns the number of the device with the file of a loop device or, if
// the file is itself a device, the number of that device. The path of the file may
// belong to another mount namespace, but the number is valid in all of them.
func fileOfLoop(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return 0, err
	}
	if info.Rdevice != 0 { // the file is a device
		return info.Rdevice, nil
	}
	return info.Device, nil
}

// devicesOf returns the devices of the mounted btrfs with the device number dev,
// which does not belong to a block device.
func devicesOf(dev uint64) (devices []uint64) {
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		if m.FSType != "btrfs" {
			return true, false
		}
		// A file has the number of its subvolume, which the mount table does not have.
		var st unix.Stat_t
		own := unix.Stat(m.Mountpoint, &st) == nil && st.Dev == dev
		return !own, own
	})
	if err != nil || len(found) == 0 {
		return nil
	}
	info, err := os.Stat(found[0].Source)
	if err != nil {
		return nil
	}
	id, err := identify(info)
	if err != nil || id.ino != 0 {
		return nil
	}
	devices = []uint64{id.dev}
	all, _ := filepath.Glob("/sys/fs/btrfs/*/devices/*/dev")
	for _, path := range all {
		if d, err := readNumber(path); err != nil || d != id.dev {
			continue
		}
		siblings, _ := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(path)), "*", "dev"))
		for _, sibling := range siblings {
			if d, err := readNumber(sibling); err == nil {
				devices = append(devices, d)
			}
		}
	}
	return devices
}

// inMemory reports whether the mounted file system with the device number dev lies in
// memory, and so not on a logical volume.
func inMemory(dev uint64) bool {
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		own := unix.Mkdev(uint32(m.Major), uint32(m.Minor)) == dev && (m.FSType == "tmpfs" || m.FSType == "ramfs")
		return !own, own
	})
	return err == nil && len(found) > 0
}

// readNumber reads a device number from a file of sysfs.
func readNumber(path string) (uint64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(text), "%d:%d", &major, &minor); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return unix.Mkdev(major, minor), nil
}

func (b below) layer(dev uint64) Layer {
	l := Layer{Device: fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)), Opaque: b.opaque}
	read := func(name string) string {
		text, _ := os.ReadFile(filepath.Join(b.dir, "dm", name))
		return strings.TrimSpace(string(text))
	}
	if b.dir == "" {
		return l
	}
	if strings.HasPrefix(read("uuid"), dmPrefix) {
		l.Group = groupOfDM(read("name"))
	}
	l.Suspended = read("suspended") == "1"
	return l
}

// above reports whether d consists of other, without a file in between. A RAID device
// or multipath map shows the same label as its members.
func (d *device) above(other *device) bool { return d.over(other, false) }

// over reports whether d lies on other: through a file if file is set, else without a
// file in between.
func (d *device) over(other *device, file bool) bool {
	if d.id.ino != 0 || other.id.ino != 0 || d.id == other.id {
		return false
	}
	through, found := map[uint64]bool{}, false
	descend(d.id.dev, nil, func(dev uint64, b below) {
		for _, next := range b.devices {
			through[next] = through[next] || through[dev] || b.file
		}
		found = found || dev == other.id.dev && through[dev] == file
	})
	return found
}

// inUse reports whether active logical volumes lie on the device.
func (d *device) inUse() bool {
	if d.id.ino != 0 {
		return false
	}
	dir := fmt.Sprintf("/sys/dev/block/%d:%d/holders", unix.Major(d.id.dev), unix.Minor(d.id.dev))
	holders, _ := os.ReadDir(dir)
	for _, h := range holders { // there may be thousands, and usually the first one answers
		if uuid, err := os.ReadFile(filepath.Join(dir, h.Name(), "dm/uuid")); err == nil && strings.HasPrefix(string(uuid), dmPrefix) {
			return true
		}
	}
	return false
}
