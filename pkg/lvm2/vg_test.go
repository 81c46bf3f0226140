//go:build !kernel

package lvm2

import (
	"testing"
)

// TestClone_independent: changes of a clone do not change the original.
func TestClone_independent(t *testing.T) {
	vg := parseFile(t, "disk.txt")
	before := string(vg.Text(Stamp{}))
	lv := vg.LV("snapshot0").Clone()
	lv.Segments[0].Snapshot.ChunkSize, lv.Status[0] = 64, "X"
	multi := vg.LV("multi").Clone()
	multi.Segments[1].Stripes[0].Start = 99
	next := vg.Clone()
	if err := next.Remove(vg.LV("str").ID); err != nil {
		t.Fatal(err)
	}
	next.Status[0] = "X"
	if string(vg.Text(Stamp{})) != before || vg.LV("str") == nil {
		t.Error("changing a clone changed the original")
	}
	if next.LV("str") != nil || len(next.LVs) != len(vg.LVs)-1 {
		t.Error("the clone did not change")
	}
}
