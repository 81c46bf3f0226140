package dm

import (
	"reflect"
	"strings"
	"testing"
)

// TestRequest_encode: a request has the layout of struct dm_ioctl, and
// decodeReply reads the same fields.
func TestRequest_encode(t *testing.T) {
	r := request{name: "n", uuid: "u", dev: Device{254, 300}, flags: flagSuspend, cookie: 0x400000, targets: 3, data: []byte("xyz")}
	b := r.encode(8)
	want := message{}.u32(4).u32(0).u32(0).u32(320).u32(312).u32(3).u32(0).u32(2).u32(0x400000).u32(0).
		u64(0x10fe2c).field("n", 128).field("u", 129).field("", 7).field("xyz", 8)
	if !reflect.DeepEqual(message(b), want) {
		t.Errorf("encoded as\n%x, not\n%x", b, want)
	}
	got, err := decodeReply(b)
	if err != nil || got.version != (Version{4, 0, 0}) || string(got.data) != "xyz\x00\x00\x00\x00\x00" ||
		got.info != (Info{Name: "n", UUID: "u", Device: r.dev, EventNr: 0x400000, Targets: 3, Suspended: true}) {
		t.Errorf("decoded as %+v, %v", got, err)
	}
}

// TestRequest_check: names and UUIDs that do not fit are rejected.
func TestRequest_check(t *testing.T) {
	for name, c := range map[string]struct {
		r  request
		ok bool
	}{
		"long name":     {request{name: strings.Repeat("n", 127)}, true},
		"too long name": {request{name: strings.Repeat("n", 128)}, false},
		"long UUID":     {request{uuid: strings.Repeat("u", 128)}, true},
		"too long UUID": {request{uuid: strings.Repeat("u", 129)}, false},
		"NUL":           {request{name: "a\x00b"}, false},
	} {
		if err := c.r.check(); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
