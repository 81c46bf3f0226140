//go:build !kernel

package lvm2

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

// TestReplace_preservesUnknown: edits preserve unknown keys, sections and
// segment types, and their extents count as used.
func TestReplace_preservesUnknown(t *testing.T) {
	vg := present(parse(t, foreign))
	next := vg.Clone()
	lv := vg.LV("ours").Clone()
	lv.Name, lv.Tags = "renamed", []string{"t"}
	next.Tags = []string{"vt"}
	if err := errors.Join(next.Replace(lv), next.Add(linearLV("new", 0, 500, 5)), next.Validate()); err != nil {
		t.Fatal(err)
	}
	text := string(next.Text(Stamp{}))
	for _, want := range []string{
		`future_top = [ "x", 1.5 ]`, "future_section { k = 1 }", "future_key = 3.250000", `allocation_policy = "cling"`, "device_id = \"naa.5\"", "ba_start = 2048",
		"read_ahead = -1", "future = [ ]", `tags = ["segtag"]`, "magic_key = 77", "float = 1.500000", `nested { areas = [ "pv0", 200, "other", 5, "pv0", 300 ] }`,
		"historical_logical_volumes { gone {", "renamed {", "\ntags = [\"t\"]\n", "\ntags = [\"vt\"]\nextent_size", "merging_store = \"s\"",
	} {
		if strings.Count(text, want) != 1 {
			t.Errorf("the text has %q %d times", want, strings.Count(text, want))
		}
	}
	if strings.Contains(text, "ours") || strings.Contains(text, `description = "old"`) {
		t.Error("the old name or description is still there")
	}
	again := present(parse(t, text))
	if got := names(again); got != "renamed alien merge o s moved new" {
		t.Errorf("logical volumes %s", got)
	}
	if s := again.LV("renamed").Segments; len(s) != 2 || s[0].Start != 0 || s[1].Start != 16 || s[0].extra == "" {
		t.Errorf("segments %+v", s)
	}
	if vg.LV("ours") == nil || vg.LV("renamed") != nil || vg.LV("new") != nil || len(vg.Tags) != 0 {
		t.Error("the edit of the clone changed the original")
	}
	// The areas of an unknown type count as used for the length of the segment; pv1 is
	// not allocatable.
	want := []Range{{0, 16, 84}, {0, 104, 96}, {0, 210, 90}, {0, 310, 90}, {0, 440, 60}, {0, 505, 495}}
	if got := again.Free(); !reflect.DeepEqual(got, want) {
		t.Errorf("free %v, want %v", got, want)
	}
}

// TestEdit_errors: Add, Replace and Remove reject foreign, locked, missing,
// duplicate and invalid logical volumes.
func TestEdit_errors(t *testing.T) {
	for _, c := range []struct {
		lv   string
		want error
	}{{"alien", ErrForeignSegment}, {"merge", ErrLocked}, {"o", ErrLocked}, {"s", ErrLocked}, {"moved", ErrLocked}} {
		vg := parse(t, foreign)
		lv := vg.LV(c.lv)
		if err := vg.Replace(lv.Clone()); !errors.Is(err, c.want) {
			t.Errorf("replace %s: %v, want %v", c.lv, err, c.want)
		}
		if err := vg.Remove(lv.ID); !errors.Is(err, c.want) {
			t.Errorf("remove %s: %v, want %v", c.lv, err, c.want)
		}
		if vg.LV(c.lv) != lv || vg.LVByID(lv.ID) != lv {
			t.Errorf("%s changed", c.lv)
		}
	}
	vg := parse(t, foreign)
	rename := vg.LV("ours").Clone()
	rename.Name = "alien"
	linked := linearLV("snapshot3", 0, 900, 1)
	noSegments, badTag, badPV, badStatus, twice := linearLV("a", 0, 0, 1), linearLV("a", 0, 0, 1), linearLV("a", 7, 0, 1), linearLV("a", 0, 0, 1), linearLV("a", 0, 0, 1)
	noSegments.Segments, badTag.Tags, badStatus.Status, twice.ID = nil, []string{"a b"}, []string{"DMSNAP"}, rename.ID
	badID := linearLV("a", 0, 0, 1)
	badID.ID = "short"
	for _, c := range []struct {
		what string
		err  error
		want error
	}{
		{"rename to a name in use", vg.Replace(rename), ErrExists},
		{"replace what is not there", vg.Replace(linearLV("x", 0, 900, 1)), ErrNotFound},
		{"remove what is not there", vg.Remove(NewID()), ErrNotFound},
		{"add a name in use", vg.Add(linearLV("alien", 0, 900, 1)), ErrExists},
		{"add an id in use", vg.Add(twice), ErrExists},
		{"add a reserved name", vg.Add(linked), ErrInvalid},
		{"add without segments", vg.Add(noSegments), ErrInvalid},
		{"add with a bad tag", vg.Add(badTag), ErrInvalid},
		{"add on no physical volume", vg.Add(badPV), ErrInvalid},
		{"add with an own status", vg.Add(badStatus), ErrUnknownStatus},
		{"add with a bad id", vg.Add(badID), ErrInvalid},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, c.err, c.want)
		}
	}
	if got := names(vg); got != "ours alien merge o s moved" || vg.LV("ours") == nil {
		t.Errorf("logical volumes are now %s", got)
	}
}
