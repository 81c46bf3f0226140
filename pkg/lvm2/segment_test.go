//go:build !kernel

package lvm2

import (
	"errors"
	"strings"
	"testing"
)

// TestSegment_error: a logical volume of type error is written as by lvm2, is
// read and edited, and uses no extents.
func TestSegment_error(t *testing.T) {
	vg := parseFile(t, "disk.txt")
	free := len(vg.Free())
	if err := vg.Add(errorLV("nothing", 100_000)); err != nil {
		t.Fatal(err)
	}
	if err := vg.Validate(); err != nil || len(vg.Free()) != free {
		t.Errorf("%v; %d ranges are free, were %d", err, len(vg.Free()), free)
	}
	again := parse(t, string(vg.Text(Stamp{})))
	lv := again.LV("nothing")
	if lv == nil || lv.Size() != 100_000 || lv.Segments[0].Type != TypeError || lv.text != vg.LV("nothing").text {
		t.Fatalf("read again: %+v", lv)
	}
	if want := "start_extent = 0\nextent_count = 100000\n\ntype = \"error\"\n}"; !strings.Contains(lv.text, want) {
		t.Errorf("written as\n%s", lv.text)
	}
	c := lv.Clone()
	c.Tags = []string{"tag"}
	if err := errors.Join(again.Replace(c), again.Validate(), again.Remove(c.ID)); err != nil {
		t.Error(err)
	}
	bad := errorLV("bad", 1)
	bad.Segments[0].Stripes = []Stripe{{PV: 0}}
	if err := vg.Add(bad); !errors.Is(err, ErrInvalid) {
		t.Errorf("with stripes: %v", err)
	}
	bad.Segments = []Segment{{Count: 1, Type: "zero"}}
	if err := vg.Add(bad); !errors.Is(err, ErrInvalid) {
		t.Errorf("of a type that is not modelled: %v", err)
	}
}
