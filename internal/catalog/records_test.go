package catalog

import (
	"slices"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Given the tags of a logical volume, an edit leaves exactly the tags that record it.
func TestRecords_tags(t *testing.T) {
	const old = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	volume := []string{"dmsnap:role=volume", "dmsnap:name=pvc-2", "dmsnap:mode=block"}
	layer := []string{
		"dmsnap:role=layer", "dmsnap:name=old", "dmsnap:of=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "dmsnap:order=1",
		"dmsnap:created=1", "dmsnap:length=65536", "dmsnap:chunk=32",
	}
	but := func(tags []string, without []string, with ...string) []string {
		return append(slices.DeleteFunc(slices.Clone(tags), func(s string) bool { return slices.Contains(without, s) }), with...)
	}
	for name, c := range map[string]struct {
		lv    string   // bare, a volume, or old, a layer
		given []string // beside its tags
		when  func(e *Edit, o *Volume, l *Layer) error
		then  []string // all its tags
	}{
		"a volume gets a file system": {"bare", []string{"dmsnap:unformatted"},
			func(e *Edit, o *Volume, _ *Layer) error { return e.SetFormatted(o) }, volume},
		"a raw volume with content is used with a file system": {"bare", nil,
			func(e *Edit, o *Volume, _ *Layer) error { return e.SetMode(o, Filesystem, "ext4") },
			but(volume, volume[2:], "dmsnap:mode=filesystem", "dmsnap:fs=ext4", "dmsnap:raw")},
		"a raw volume without content is used with a file system": {"bare", []string{"dmsnap:unformatted"},
			func(e *Edit, o *Volume, _ *Layer) error { return e.SetMode(o, Filesystem, "xfs") },
			but(volume, volume[2:], "dmsnap:unformatted", "dmsnap:mode=filesystem", "dmsnap:fs=xfs")},
		"extents are wiped": {"bare", []string{"dmsnap:unknown=/0.0+8"},
			func(e *Edit, o *Volume, _ *Layer) error { return e.SetWiped(o, RangeSet{{Count: 3}}) },
			append(slices.Clone(volume), "dmsnap:unknown=/0.3+5")},
		"all extents are wiped": {"bare", []string{"dmsnap:unknown=/0.0+8"},
			func(e *Edit, o *Volume, _ *Layer) error { return e.SetWiped(o, RangeSet{{Count: 8}}) }, volume},
		"a part of a fork is hydrated": {"bare", []string{"dmsnap:copy=" + old},
			func(e *Edit, o *Volume, _ *Layer) error {
				return e.SetHydrated(o, Spans{{Start: 16, Length: 8}, {Start: 64, Length: 65472}}, 65536)
			},
			append(slices.Clone(volume), "dmsnap:copy="+old, "dmsnap:hydrated=64/16+8")},
		"a transient volume is activated": {"bare", []string{"dmsnap:reads=" + old, "dmsnap:transient", "dmsnap:chunk=32"},
			func(e *Edit, o *Volume, _ *Layer) error { return e.SetBegun(o, false) },
			append(slices.Clone(volume), "dmsnap:reads="+old, "dmsnap:transient", "dmsnap:chunk=32", "dmsnap:begun")},
		"a transient volume lost its content": {"bare", []string{"dmsnap:reads=" + old, "dmsnap:transient", "dmsnap:chunk=32", "dmsnap:begun"},
			func(e *Edit, o *Volume, _ *Layer) error { return e.SetBegun(o, true) },
			append(slices.Clone(volume), "dmsnap:reads="+old, "dmsnap:transient", "dmsnap:chunk=32", "dmsnap:begun", "dmsnap:reset")},
		"a volume is copied": {"bare", []string{"dmsnap:copying=" + old + "/0"},
			func(e *Edit, o *Volume, _ *Layer) error { return e.RecordCopied(o, CopyState{Loan: old, Done: 2048}) },
			append(slices.Clone(volume), "dmsnap:copying=bbbbbb-bbbb-bbbb-bbbb-bbbb-bbbb-bbbbbb/2048")},
		"a copy is complete": {"bare", []string{"dmsnap:copying=" + old + "/2048"},
			func(e *Edit, o *Volume, _ *Layer) error { return e.CompleteCopy(o) }, volume},
		"a volume without snapshots is deleted": {"bare", nil,
			func(e *Edit, o *Volume, _ *Layer) error { return e.DeleteVolume(o) }, []string{"dmsnap:role=trash"}},
		"a snapshot is deleted that nothing reads": {"old", nil,
			func(e *Edit, _ *Volume, l *Layer) error { return e.Unname(l) }, []string{"dmsnap:role=trash"}},
		"a frozen store has a boundary": {"old", nil,
			func(e *Edit, _ *Volume, l *Layer) error { return e.SetBound(l.LV, 4096) },
			append(slices.Clone(layer), "dmsnap:exact=4096")},
		"a frozen store is trimmed": {"old", []string{"dmsnap:exact=4096"},
			func(e *Edit, _ *Volume, l *Layer) error { return e.SetUsed(l.LV, 512) },
			append(slices.Clone(layer), "dmsnap:exact=4096", "dmsnap:used=512")},
		"a snapshot is lost": {"old", nil,
			func(e *Edit, _ *Volume, l *Layer) error { return e.Lose(e.Volumes[l.Of], l) },
			append(slices.Clone(layer), "dmsnap:lost")},
		"a layer has taken in the next one": {"old", []string{"dmsnap:superset"},
			func(e *Edit, _ *Volume, l *Layer) error { return e.Folded(l, e.Snapshots["new"]) },
			append(slices.Clone(layer), "dmsnap:superset", "dmsnap:through=2")},
	} {
		t.Run(name, func(t *testing.T) {
			vg := rollbackGroup(t).VG
			lv := vg.LV(c.lv).Clone()
			lv.Tags = append(lv.Tags, c.given...)
			if err := vg.Replace(lv); err != nil {
				t.Fatal(err)
			}
			e := &Edit{View: NewView(vg, nil)}
			if len(e.Strange) > 0 {
				t.Fatal(e.Strange)
			}
			if err := c.when(e, e.VolumeByLV("bare"), e.Snapshots["old"]); err != nil {
				t.Fatal(err)
			}
			got, want := slices.Sorted(slices.Values(e.VG.LVByID(lv.ID).Tags)), slices.Sorted(slices.Values(c.then))
			if !slices.Equal(got, want) {
				t.Errorf("%v\nwant %v", got, want)
			}
			if now := NewView(e.VG, nil); len(now.Strange) > 0 || !e.Changed {
				t.Errorf("changed %v; what it left is not understood: %v", e.Changed, now.Strange)
			}
		})
	}
}

// A logical volume of LVM2's own that becomes a volume, or the store of a layer, is read
// back as what it was given.
func TestRecords_adopted(t *testing.T) {
	v := rollbackGroup(t)
	e := &Edit{View: v}
	theirs := &lvm2.LV{
		Name: "theirs", ID: lvm2.NewID(), Tags: []string{"dmsnap:static", "foreign"}, Status: []string{lvm2.StatusRead, lvm2.StatusVisible},
		Segments: AppendExtents(nil, lvm2.Range{Start: 100, Count: 4}),
	}
	if err := e.Put(AsVolume(theirs, "pvc-3", Filesystem, "btrfs")); err != nil {
		t.Fatal(err)
	}
	store := &lvm2.LV{Name: "snap", ID: lvm2.NewID(), Status: theirs.Status, CreationTime: time.Unix(1, 0), Segments: AppendExtents(nil, lvm2.Range{Start: 104, Count: 2})}
	if err := e.Put(store); err != nil {
		t.Fatal(err)
	}
	if err := e.AsLayer(store, v.VolumeByLV("bare"), Adopted{Order: 1, Over: 2, Length: 64 * size.KiB.Sectors(), Chunk: 16, Lost: true}); err != nil {
		t.Fatal(err)
	}
	now := NewView(e.VG, nil)
	if o := now.Named["pvc-3"]; len(now.Strange) > 0 || o == nil || o.LV.Name != "theirs" || o.FS != "btrfs" || !o.ReadOnly || !o.Formatted {
		t.Errorf("the volume is %+v, strange is %v", o, now.Strange)
	}
	if l := now.Snapshots["snap"]; l == nil || l.Of != v.VolumeByLV("bare").LV.ID || l.Order != 1 || l.Over != 2 || l.Chunk != 16 || !l.Lost || !l.Superset {
		t.Errorf("the layer is %+v", l)
	}
	if now.IsTheirs(now.VG.LV("theirs")) || !slices.Contains(now.VG.LV("theirs").Tags, "foreign") {
		t.Error("it is LVM2's own still, or others' tags are gone")
	}
}
