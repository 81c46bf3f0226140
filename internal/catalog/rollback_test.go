package catalog

import (
	"slices"
	"testing"
)

// TestSetAside_snapshots keeps the snapshots of a volume that is set aside, under
// the name that people know. A volume without snapshots is discarded.
func TestSetAside_snapshots(t *testing.T) {
	v := rollbackGroup(t)
	own := *v
	own.VG = v.VG.Clone()
	e := &Edit{View: &own}
	for lv, want := range map[string]string{"base": "former-base", "bare": ""} {
		if name, err := e.SetAside(v.VolumeByLV(lv)); err != nil || name != want {
			t.Errorf("%s: %q, %v, want %q", lv, name, err, want)
		}
	}
	if err := e.VG.Validate(); err != nil {
		t.Fatal(err)
	}
	now := NewView(e.VG, v)
	if now.VG.LV("base") != nil || now.VG.LV("bare") != nil || len(now.Trash) != 1 {
		t.Errorf("the names are not free, or what goes is not trash: %v", now.Trash)
	}
	former := now.VolumeByLV("former-base")
	if former == nil || !former.Deleted || former.Live() == nil || now.Named["pvc-1"] != nil || !slices.Equal(former.LV.Flags, handsOff) {
		t.Fatalf("%+v", former)
	}
	if !slices.Contains(former.LV.Tags, "theirs") {
		t.Errorf("tags of others are gone: %v", former.LV.Tags)
	}
	for name, l := range now.Snapshots {
		if of := now.Volumes[l.Of].Known(); of != "base" || now.LostSnapshot(l) {
			t.Errorf("%s: it is of %s, lost: %v", name, of, now.LostSnapshot(l))
		}
	}
	if name, err := now.LVName("base"); err != nil || name != "base-2" {
		t.Errorf("a new volume gets the name %q, %v, by which others' snapshots are known", name, err)
	}
	r := &Checks{VG: "vg"}
	r.CheckMetadata(now)
	for _, f := range r.Findings {
		t.Errorf("check: %+v", f)
	}
}
