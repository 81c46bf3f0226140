package catalog

import (
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestFreeze_edits: a cut adds the new live layer, and leaves the former one as a logical
// volume of its own that LVM2 neither writes nor activates.
func TestFreeze_edits(t *testing.T) {
	freeze := func(exact bool) func(e *Edit) error {
		return func(e *Edit) error { return e.Freeze(e.Snapshots.Get("new"), exact) }
	}
	cut := func(e *Edit, of string) error {
		o := e.VolumeByLV(of)
		lv := e.NewLayer("cut", o, 32)
		lv.Segments = AppendExtents(nil, e.Take(lvm2.Range{Start: 450, Count: 2})...)
		if former := o.Live(); former != nil {
			if err := e.Freeze(former, false); err != nil {
				return err
			}
		}
		if err := e.Put(lv); err != nil {
			return err
		}
		return e.Join(o, lv, e.BytesOf(o.LV), 32)
	}
	testEdits(t, []editCase{
		{what: "copies may follow", edit: freeze(false),
			then: []string{"new 402+2,ro,locked name=new" + newTags, "snapshot0 gone"}},
		{what: "no copies follow", edit: freeze(true),
			then: []string{"new 402+2,ro,locked exact name=new" + newTags, "snapshot0 gone"}},
		{what: "lost in the same edit", edit: func(e *Edit) error {
			l := e.Snapshots.Get("new")
			if err := e.Lose(e.Volumes.Get(l.Of), l); err != nil {
				return err
			}
			return e.Freeze(l, false)
		}, then: []string{"old 400+2,ro,locked name=old lost" + oldTags, "new 402+2,ro,locked name=new lost" + newTags, "snapshot0 gone"}},
		{what: "first cut", given: []string{"bare 8+8 role=volume name=pvc-2 mode=block unformatted unknown=/0.4+4 asked=1000"},
			edit: func(e *Edit) error { return cut(e, "bare") },
			then: []string{
				"cut 450+2,hidden role=layer of=bare order=1 created=now length=65536 chunk=32 unformatted unknown=/0.4+4 asked=1000",
				"snapshot1 bare<cut", "free -450+2",
			}},
		{what: "next cut", edit: func(e *Edit) error { return cut(e, "base") },
			then: []string{
				"new 402+2,ro,locked name=new" + newTags, "snapshot0 gone",
				"cut 450+2,hidden role=layer of=base order=3 created=now length=65536 chunk=32",
				"snapshot0 base<cut", "free -450+2",
			}},
		{what: "cut of a fork", given: []string{forkLine, storeLine}, edit: func(e *Edit) error { return cut(e, "fork") },
			then: []string{"cut 450+2,hidden,locked role=layer of=fork order=1 created=now length=65536 chunk=32", "snapshot1 fork<cut", "free -450+2"}},
	})
}

// TestRecord_edits: a finished cut has its time, and its snapshot's name if it is for a
// snapshot. A layer that somebody removed meanwhile is an error.
func TestRecord_edits(t *testing.T) {
	record := func(layer, name string) func(e *Edit) error {
		return func(e *Edit) error {
			id := lvm2.NewID()
			if lv := e.VG.LV(layer); lv != nil {
				id = lv.ID
			}
			return e.Record(CutLayer{Layer: id, At: time.Unix(0, 7)}, name)
		}
	}
	testEdits(t, []editCase{
		{what: "snapshot", given: []string{"new 402+2,hidden" + newTags}, edit: record("new", "daily"),
			then: []string{"new 402+2,hidden role=layer of=base order=2 created=7 length=65536 chunk=32 name=daily"}},
		{what: "clone", given: []string{"new 402+2,hidden" + newTags}, edit: record("new", ""),
			then: []string{"new 402+2,hidden role=layer of=base order=2 created=7 length=65536 chunk=32"}},
		{what: "removed layer", edit: record("nothing", "daily"), err: ErrNotFound},
	})
}
