//go:build !kernel

package lvm2

import (
	"errors"
	"strings"
	"testing"
)

func TestID(t *testing.T) {
	const printed = "FZS26V-gx1w-TkLg-pfHT-ADnp-Alql-qv1kNy"
	id, err := ParseID(printed)
	if err != nil || id != "FZS26Vgx1wTkLgpfHTADnpAlqlqv1kNy" || id.String() != printed {
		t.Fatalf("got %q, %v", string(id), err)
	}
	if again, err := ParseID(string(id)); err != nil || again != id {
		t.Errorf("without hyphens: %v, %v", again, err)
	}
	for _, bad := range []string{"", "x", printed[1:] + "-", strings.Repeat("a", 31), strings.Repeat("a", 31) + "_", strings.Replace(printed, "-", "x", 1)} {
		if id, err := ParseID(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, %v", bad, id, err)
		}
	}
	seen := map[ID]bool{}
	for range 1000 {
		id := NewID()
		if _, err := ParseID(string(id)); err != nil || seen[id] || strings.ContainsAny(string(id), "!#") {
			t.Fatalf("new id %q: %v, seen before: %v", string(id), err, seen[id])
		}
		seen[id] = true
	}
}

// The limits are those that lvm2 was seen to have; see also TestNamesInterop.
func TestNames(t *testing.T) {
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

func TestDMNames(t *testing.T) {
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
