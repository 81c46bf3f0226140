package catalog

import (
	"slices"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestRecords_tags: each record of a fact changes exactly the tags of the fact.
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
		given []string // tags besides its usual ones
		when  func(e *Edit, o *Volume, l *Layer) error
		then  []string // all its tags afterwards
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
			func(e *Edit, _ *Volume, l *Layer) error { return e.Lose(e.Volumes.Get(l.Of), l) },
			append(slices.Clone(layer), "dmsnap:lost")},
		"a layer has taken in the next one": {"old", []string{"dmsnap:superset"},
			func(e *Edit, _ *Volume, l *Layer) error { return e.Folded(l, e.Snapshots.Get("new")) },
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
			if err := c.when(e, e.VolumeByLV("bare"), e.Snapshots.Get("old")); err != nil {
				t.Fatal(err)
			}
			got, want := slices.Sorted(slices.Values(e.VG.LVByID(lv.ID).Tags)), slices.Sorted(slices.Values(c.then))
			if !slices.Equal(got, want) {
				t.Errorf("%v\nwant %v", got, want)
			}
			if now := NewView(e.VG, nil); len(now.Strange) > 0 || !e.Changed {
				t.Errorf("Changed is %v; not understood after the edit: %v", e.Changed, now.Strange)
			}
		})
	}
}

// TestRecords_adopted: a logical volume of LVM2's own that became a volume, or a layer, is
// decoded as that volume or layer. Tags of others stay.
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
	if o := now.Named.Get("pvc-3"); len(now.Strange) > 0 || o == nil || o.LV.Name != "theirs" || o.FS != "btrfs" || !o.ReadOnly || !o.Formatted {
		t.Errorf("the volume is %+v; not understood: %v", o, now.Strange)
	}
	if l := now.Snapshots.Get("snap"); l == nil || l.Of != v.VolumeByLV("bare").LV.ID || l.Order != 1 || l.over != 2 || l.Chunk != 16 || !l.Lost || !l.Superset {
		t.Errorf("the layer is %+v", l)
	}
	if now.IsTheirs(now.VG.LV("theirs")) || !slices.Contains(now.VG.LV("theirs").Tags, "foreign") {
		t.Error("the volume still counts as LVM2's own, or has lost the tags of others")
	}
}

// TestFolded_edits: the heir takes the place of the layer that was folded into it, also where
// that layer read through another than the next one. The layer becomes trash.
func TestFolded_edits(t *testing.T) {
	fold := func(heir, gone string) func(e *Edit) error {
		return func(e *Edit) error { return e.Folded(e.Layers.Get(e.VG.LV(heir).ID), e.Layers.Get(e.VG.LV(gone).ID)) }
	}
	const place = " role=layer of=base created=1 length=65536 chunk=32 "
	given := func(midTags string) []string {
		return []string{"old 400+2,ro,locked name=old superset used=99 order=1" + place, "mid 404+3,ro,locked order=2 " + midTags + place, "new 402+2,hidden name=new order=6" + place}
	}
	testEdits(t, []editCase{
		{what: "next layer", given: given("through=5"), edit: fold("old", "mid"),
			then: []string{"old 400+2,ro,locked name=old superset order=1 through=5" + place, "mid:trash 404+3,inactive role=trash"}},
		{what: "adopted layer", given: given("over=6"), edit: fold("old", "mid"),
			then: []string{"old 400+2,ro,locked name=old superset order=1 through=2 over=6" + place, "mid:trash 404+3,inactive role=trash"}},
		{what: "heir that LVM2 moves", given: append(given("through=5"), "old 400+2,ro,locked,pvmove name=old superset order=1"+place), edit: fold("old", "mid"), err: ErrPrecondition},
	})
	e := &Edit{View: rollbackGroup(t)}
	l := e.Snapshots.Get("old")
	l.LV = l.LV.Clone()
	l.LV.Tags = append(l.LV.Tags, Tag(tagUsed, "99"), Tag(tagExact, "64"), "theirs")
	if got := l.Collecting().Tags; !slices.Equal(got[len(got)-2:], []string{"theirs", Tag(tagSuperset)}) || slices.Contains(got, Tag(tagUsed, "99")) {
		t.Errorf("a layer that takes in chunks has the tags %v", got)
	}
}

// TestTransient_edits: a transient volume that lost its writes starts over with its layer's
// content, and the record of the loss ends with its use.
func TestTransient_edits(t *testing.T) {
	const scratch = "scratch 20+8,locked role=volume name=pvc-6 mode=filesystem fs=ext4 transient chunk=32 reads=old "
	of := func(edit func(e *Edit, o *Volume) error) func(e *Edit) error {
		return func(e *Edit) error { return edit(e, e.VolumeByLV("scratch")) }
	}
	blank := []string{"old 400+2,ro,locked name=old unformatted unknown=/0.2+3" + oldTags, scratch + "begun"}
	testEdits(t, []editCase{
		{what: "starts over", given: blank, edit: of(func(e *Edit, o *Volume) error { return e.StartOver(o, e.Snapshots.Get("old")) }),
			then: []string{scratch + "begun reset unformatted unknown=/0.2+3"}},
		{what: "extents are wiped", given: []string{scratch + "unknown=/0.0+8"}, edit: of(func(e *Edit, o *Volume) error { return e.SetWiped(o, RangeSet{{Count: 8}}) }),
			then: []string{scratch + "begun"}},
		{what: "use ends", given: []string{scratch + "begun reset"}, edit: of((*Edit).ForgetReset),
			then: []string{scratch + "begun"}},
	})
}

// TestNewVolumeLV_edits: a new volume's tags say what was requested and what it is made from.
// LVM2 must not touch what it would take for a plain volume.
func TestNewVolumeLV_edits(t *testing.T) {
	add := func(spec VolumeSpec, as func(e *Edit, lv *lvm2.LV)) func(e *Edit) error {
		return func(e *Edit) error {
			lv := NewVolumeLV("made", spec, 32*size.MiB)
			lv.Segments = AppendExtents(nil, e.Take(lvm2.Range{Start: 50, Count: 8})...)
			if as != nil {
				as(e, lv)
			}
			return e.Put(lv)
		}
	}
	old := Source{Kind: FromSnapshot, LV: "old"}
	const free = "free -50+8"
	testEdits(t, []editCase{
		{what: "file system", edit: add(VolumeSpec{Name: "a b", Size: 30e6, Mode: Filesystem, FSType: "xfs"}, nil),
			then: []string{"made 50+8 role=volume name=a=20b mode=filesystem fs=xfs unformatted asked=30000000", free}},
		{what: "shared, of the requested size", edit: add(VolumeSpec{Name: "x", Size: 32 * size.MiB, Mode: Block, Shared: true}, nil),
			then: []string{"made 50+8 role=volume name=x mode=block unformatted shared", free}},
		{what: "fork", edit: add(VolumeSpec{Name: "x", Mode: Block, Source: old}, func(e *Edit, lv *lvm2.LV) {
			ReadThrough(lv, e.Snapshots.Get("old").LV.ID)
			store := NewForkStore("store", lv, 32)
			store.Segments = AppendExtents(nil, e.Take(lvm2.Range{Start: 60, Count: 1})...)
			if err := e.Put(store); err != nil {
				t.Error(err)
			}
		}), then: []string{"made 50+8,locked role=volume name=x mode=block source=snapshot/old copy=old", "store 60+1,locked role=fork of=made chunk=32", "free -50+8/60+1"}},
		{what: "transient volume", edit: add(VolumeSpec{Name: "x", Mode: Block, Source: old, Transient: true}, func(e *Edit, lv *lvm2.LV) {
			Show(lv, e.Snapshots.Get("old").LV.ID, 16)
		}), then: []string{"made 50+8,locked role=volume name=x mode=block source=snapshot/old reads=old transient chunk=16", free}},
		{what: "copy from another pool", edit: add(VolumeSpec{Name: "x", Mode: Block, Source: old, SourcePool: "fast"}, func(e *Edit, lv *lvm2.LV) {
			SetCopying(lv, CopyState{Loan: e.VG.LV("bare").ID})
		}), then: []string{"made 50+8,locked role=volume name=x mode=block source=snapshot/old/fast copying=bare/0", free}},
		{what: "name that is taken", edit: func(e *Edit) error {
			lv := NewVolumeLV("bare", VolumeSpec{Name: "x", Mode: Block}, 32*size.MiB)
			lv.Segments = AppendExtents(nil, lvm2.Range{Start: 50, Count: 8})
			return e.Put(lv)
		}, err: lvm2.ErrExists},
	})
}

// TestMoveUp_edits: adopted snapshots get the places below the new live layer, and the former
// live layer reads through it.
func TestMoveUp_edits(t *testing.T) {
	const adopted = "role=layer name=snap of=base order=3 over=4 created=1000000000 length=65536 chunk=16 superset"
	testEdits(t, []editCase{{what: "one snapshot of LVM2's",
		given: []string{"old 400+2,ro,locked name=old" + oldTags, "cut 404+2,ro,locked role=layer of=base order=3 created=1 length=65536 chunk=32", "snap 408+2 static"},
		edit: func(e *Edit) error {
			lv := e.VG.LV("snap").Clone()
			lv.CreationTime = time.Unix(1, 0)
			former := e.Snapshots.Get("new")
			if err := e.Freeze(former, false); err != nil {
				return err
			}
			if err := e.MoveUp(e.VG.LV("cut"), former, 4); err != nil {
				return err
			}
			return e.AsLayer(lv, e.VolumeByLV("base"), Adopted{Order: 3, Over: 4, Length: 65536, Chunk: 16})
		},
		then: []string{
			"cut 404+2,ro,locked role=layer of=base order=4 created=1 length=65536 chunk=32",
			"new 402+2,ro,locked name=new over=4" + newTags, "snapshot0 gone", "snap 408+2,ro,locked " + adopted,
		}}})
}
