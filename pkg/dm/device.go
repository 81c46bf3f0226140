package dm

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Device is the number of any block device, mapped or not.
type Device struct{ Major, Minor uint32 }

// String prints d as in tables: "254:3".
func (d Device) String() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// ParseDevice parses a device number such as "254:3". The major number has 12
// bits and the minor number 20, as in the kernel.
func ParseDevice(s string) (Device, error) {
	a, b, ok := strings.Cut(s, ":")
	major, err1 := strconv.ParseUint(a, 10, 12)
	minor, err2 := strconv.ParseUint(b, 10, 20)
	if !ok || err1 != nil || err2 != nil {
		return Device{}, fmt.Errorf("device number %q is not of the form major:minor", s)
	}
	return Device{uint32(major), uint32(minor)}, nil
}

// DeviceOf returns the number of the block device at path, which is a node or a
// link to a node.
func DeviceOf(path string) (Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Device{}, fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return Device{}, fmt.Errorf("%s is not a block device", path)
	}
	return deviceOfStat(&st), nil
}

func deviceOfStat(st *unix.Stat_t) Device {
	return Device{unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))}
}

// encode returns d in the encoding of the ioctls (the kernel's huge_encode_dev).
func (d Device) encode() uint64 {
	return uint64(d.Minor&0xff) | uint64(d.Major)<<8 | uint64(d.Minor&^0xff)<<12
}

func decodeDevice(v uint64) Device {
	return Device{Major: uint32(v >> 8 & 0xfff), Minor: uint32(v&0xff | v>>12&0xfff00)}
}
