package dm

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDevice(t *testing.T) {
	for text, code := range map[string]uint64{"254:0": 0xfe00, "8:19": 0x813, "254:300": 0x10fe2c, "4095:1048575": 0xffffffff} {
		d, err := ParseDevice(text)
		if err != nil || d.String() != text || d.encode() != code || decodeDevice(code) != d {
			t.Errorf("%s: %v, encoded %#x, decoded %v, %v", text, d, d.encode(), decodeDevice(code), err)
		}
	}
	for _, text := range []string{"", "8", ":", "8:", ":0", "8:-1", "+8:0", "4096:0", "0:1048576", "8:0:0", "8: 0", "/dev/sda"} {
		if d, err := ParseDevice(text); err == nil {
			t.Errorf("%q was parsed as %v", text, d)
		}
	}
	for _, path := range []string{"/dev/null", "/nonexistent", "/"} {
		if d, err := DeviceOf(path); err == nil {
			t.Errorf("%s is the block device %v", path, d)
		}
	}
}

func TestErrorText(t *testing.T) {
	for want, err := range map[string]*Error{
		"device-mapper: remove vg-a: device is in use: device or resource busy": {opRemove.name, "vg-a", opRemove.explain(unix.EBUSY)},
		"device-mapper: list devices: no space left on device":                  {opList.name, "", opList.explain(unix.ENOSPC)},
		"device-mapper: load table of vg-a: kernel refused the table, its log (dmesg) says why: invalid argument": {
			opLoad.name, "vg-a", opLoad.explain(unix.EINVAL)},
		"device-mapper: load table of vg-a: needs CAP_SYS_ADMIN in the initial user namespace: permission denied": {
			opLoad.name, "vg-a", opLoad.explain(unix.EACCES)},
	} {
		if err.Error() != want {
			t.Errorf("error is %q, not %q", err, want)
		}
	}
	err := error(&Error{opRemove.name, "vg-a", opRemove.explain(unix.EBUSY)})
	if !errors.Is(err, ErrBusy) || !errors.Is(err, unix.EBUSY) || errors.Is(err, ErrExists) || errors.Is(err, ErrNotFound) {
		t.Errorf("%v is not exactly ErrBusy and EBUSY", err)
	}
}
