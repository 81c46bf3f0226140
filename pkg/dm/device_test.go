package dm

import (
	"testing"
)

// TestParseDevice_roundTrip: a device number survives text and ioctl encoding,
// and malformed numbers are errors.
func TestParseDevice_roundTrip(t *testing.T) {
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
			t.Errorf("%s is not a block device, but has the number %v", path, d)
		}
	}
}
