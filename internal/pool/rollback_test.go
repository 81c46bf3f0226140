package pool

import (
	"slices"
	"testing"
)

// TestSetAside_snapshots keeps the snapshots of a volume that is set aside, under
// the name that people know. A volume without snapshots is discarded.
func TestSetAside_snapshots(t *testing.T) {
	v := rollbackGroup(t)
	own := *v
	own.vg = v.vg.Clone()
	e := &edit{view: &own}
	for lv, want := range map[string]string{"base": "former-base", "bare": ""} {
		if name, err := e.setAside(v.volumeByLV(lv)); err != nil || name != want {
			t.Errorf("%s: %q, %v, want %q", lv, name, err, want)
		}
	}
	if err := e.vg.Validate(); err != nil {
		t.Fatal(err)
	}
	now := newView(e.vg, v)
	if now.vg.LV("base") != nil || now.vg.LV("bare") != nil || len(now.trash) != 1 {
		t.Errorf("the names are not free, or what goes is not trash: %v", now.trash)
	}
	former := now.volumeByLV("former-base")
	if former == nil || !former.deleted || former.live() == nil || now.named["pvc-1"] != nil || !slices.Equal(former.lv.Flags, handsOff) {
		t.Fatalf("%+v", former)
	}
	if !slices.Contains(former.lv.Tags, "theirs") {
		t.Errorf("tags of others are gone: %v", former.lv.Tags)
	}
	for name, l := range now.snapshots {
		if of := now.volumes[l.of].known(); of != "base" || now.lostSnapshot(l) {
			t.Errorf("%s: it is of %s, lost: %v", name, of, now.lostSnapshot(l))
		}
	}
	if name, err := now.lvName("base"); err != nil || name != "base-2" {
		t.Errorf("a new volume gets the name %q, %v, by which others' snapshots are known", name, err)
	}
	r := &checks{vg: "vg"}
	r.checkMetadata(now)
	for _, f := range r.findings {
		t.Errorf("check: %+v", f)
	}
}
