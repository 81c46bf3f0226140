//go:build !kernel

package lvm2

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestEncode_asLVM2: sections that this package encodes equal lvm2's sections
// byte for byte.
func TestEncode_asLVM2(t *testing.T) {
	vg := parseFile(t, "disk.txt")
	for _, lv := range vg.LVs {
		if got := lv.encode(vg.PVs); got != lv.text {
			t.Errorf("got\n%s\nlvm2 wrote\n%s", got, lv.text)
		}
	}
	for _, pv := range vg.PVs {
		pv.Device = pv.hint
		if got := pv.encode(); got != pv.text {
			t.Errorf("got\n%s\nlvm2 wrote\n%s", got, pv.text)
		}
	}
}

// TestText_roundTrip: a written text parses to the same volume group and has
// one description and time.
func TestText_roundTrip(t *testing.T) {
	vg := parseFile(t, "disk.txt")
	now := time.Unix(1795341113, 0)
	again := parse(t, string(vg.Text(Stamp{`say "hi"`, "host", now})))
	if again.Name != vg.Name || !reflect.DeepEqual(again.PVs, vg.PVs) || !reflect.DeepEqual(again.LVs, vg.LVs) {
		t.Errorf("%+v\nbecame\n%+v", vg, again)
	}
	text := string(again.Text(Stamp{"d", "h", now}))
	if text != string(vg.Text(Stamp{"d", "h", now})) {
		t.Error("the second text differs from the first")
	}
	if strings.Count(text, "description") != 1 || strings.Count(text, "\ncreation_time = 1795341113\n") != 1 {
		t.Errorf("the text must have one description and one time:\n%s", text[len(text)-300:])
	}
}
