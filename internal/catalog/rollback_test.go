package catalog

import (
	"slices"
	"testing"
)

// TestSetAside_snapshots: a volume that is set aside keeps its snapshots, under the name that
// users know. A volume without snapshots is discarded.
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
		t.Errorf("a name is not free, or the discarded volume is not trash: %v", now.Trash)
	}
	former := now.VolumeByLV("former-base")
	if former == nil || !former.Deleted || former.Live() == nil || now.Named.Get("pvc-1") != nil || !slices.Equal(former.LV.Flags, handsOff) {
		t.Fatalf("the volume that was set aside is %+v", former)
	}
	if !slices.Contains(former.LV.Tags, "theirs") {
		t.Errorf("a tag of others is gone: %v", former.LV.Tags)
	}
	for name, l := range now.Snapshots.All() {
		if of := now.Volumes.Get(l.Of).Known(); of != "base" || now.LostSnapshot(l) {
			t.Errorf("snapshot %s belongs to %s, and its loss is %v", name, of, now.LostSnapshot(l))
		}
	}
	if name, err := now.LVName("base"); err != nil || name != "base-2" {
		t.Errorf("the name of a new volume is %q, %v; want base-2, because snapshots are known by base", name, err)
	}
	r := &Checks{VG: "vg"}
	r.CheckMetadata(now)
	for _, f := range r.Findings {
		t.Errorf("finding: %+v", f)
	}
}

// TestSetAside_edits: the volume's names are free for the volume that takes its place, and
// LVM2's snapshot follows it to its new name.
func TestSetAside_edits(t *testing.T) {
	aside := func(lv string) func(e *Edit) error {
		return func(e *Edit) error { _, err := e.SetAside(e.VolumeByLV(lv)); return err }
	}
	testEdits(t, []editCase{
		{what: "snapshots", edit: aside("base"),
			then: []string{"base:former-base 0+8,locked role=volume mode=block deleted former=base theirs", "snapshot0 former-base<new"}},
		{what: "second time", given: []string{"former-base 30+8,locked role=volume mode=block deleted former=base"}, edit: aside("base"),
			then: []string{"base:former-base-2 0+8,locked role=volume mode=block deleted former=base theirs", "snapshot0 former-base-2<new"}},
		{what: "no snapshots", edit: aside("bare"),
			then: []string{"bare:trash 8+8,inactive role=trash"}},
		{what: "fork without snapshots", given: []string{forkLine, storeLine}, edit: aside("fork"),
			then: []string{"fork:trash 16+8,inactive role=trash", "store:trash 404+2,inactive role=trash"}},
		{what: "volume that LVM2 moves", given: []string{"bare 8+8,pvmove role=volume name=pvc-2 mode=block"}, edit: aside("bare"), err: ErrPrecondition},
	})
}
