//go:build !kernel

package lvm2

import (
	"errors"
	"strings"
	"testing"
)

// TestCheckNames_lvm2Limits: names and tags have the limits that lvm2 was
// observed to have; see also TestCheckLVName_lvcreate.
func TestCheckNames_lvm2Limits(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	for _, c := range []struct {
		vg, lv string
		ok     bool
	}{
		{"vg", "pvc-0123", true}, {"vg", "x-cow", true}, {"vg", "x-real", true}, {"vg", "snap_cow", true}, {"vg", ".a", true}, {"vg", "+a", true}, {"vg", "0123", true},
		{"vg", "mysnapshot", true}, {"vg", "a.b_c+d-e", true},
		{"vg", "", false}, {"vg", ".", false}, {"vg", "..", false}, {"vg", "-a", false}, {"vg", "a b", false}, {"vg", "a/b", false}, {"vg", "ä", false}, {"vg", "a@b", false},
		{"vg", "snapshot1", false}, {"vg", "pvmove", false}, {"vg", "a_tmeta", false}, {"vg", "x_rimage_0", false}, {"vg", "lvol0_pmspare", false},
		{"vg", long(119), true}, {"vg", long(120), false}, {"vg", strings.Repeat("-x", 39) + "xx", false}, {"vg", "x" + strings.Repeat("-", 59), true}, {"vg", "x" + strings.Repeat("-", 60), false},
	} {
		if err := CheckLVName(c.vg, c.lv); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s/%s (%d bytes): %v", c.vg, c.lv, len(c.lv), err)
		}
	}
	for name, ok := range map[string]bool{"vg": true, "my-vg.1": true, long(127): true, long(128): false, "": false, "-": false, "a:b": false} {
		if err := CheckVGName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
	for tag, ok := range map[string]bool{"a": true, "csi.k8s/x=a+b-c_d!e:f&g#h": true, long(1024): true, long(1025): false, "": false, "a b": false, "@a": false, `a"b`: false, "ä": false} {
		if err := CheckTag(tag); (err == nil) != ok {
			t.Errorf("tag %q: %v", tag, err)
		}
	}
}

// TestDMName_hyphens: names and UUIDs of devices are those of lvm2.
func TestDMName_hyphens(t *testing.T) {
	if got := DMName("my-vg", "a-b.c_d+e", ""); got != "my--vg-a--b.c_d+e" {
		t.Error(got)
	}
	if got := DMName("vg", "snap", "cow"); got != "vg-snap-cow" {
		t.Error(got)
	}
	if got := DMUUID("V", "L", "real"); got != "LVM-VL-real" {
		t.Error(got)
	}
}

// TestGroupOfDM_inverse: groupOfDM finds the volume group in a device's name.
func TestGroupOfDM_inverse(t *testing.T) {
	for _, c := range [][2]string{{"vg", "a"}, {"vg-fast", "pvc-1"}, {"a--b", "c--d"}, {"vg-", "lv"}} {
		if got := groupOfDM(DMName(c[0], c[1], "")); got != c[0] {
			t.Errorf("group of %v: %q", c, got)
		}
	}
}
