package catalog

import (
	"errors"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// cutOf cuts a volume as the engine does.
func cutOf(e *Edit, of string) error {
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

// TestFreeze_edits: a cut adds the new live layer, and leaves the former one as a logical
// volume of its own that LVM2 neither writes nor activates.
func TestFreeze_edits(t *testing.T) {
	freeze := func(exact bool) func(e *Edit) error {
		return func(e *Edit) error { return e.Freeze(e.Snapshots.Get("new"), exact) }
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
			edit: func(e *Edit) error { return cutOf(e, "bare") },
			then: []string{
				"cut 450+2,hidden role=layer of=bare order=1 created=now length=65536 chunk=32 unformatted unknown=/0.4+4 asked=1000",
				"snapshot1 bare<cut", "free -450+2",
			}},
		{what: "next cut", edit: func(e *Edit) error { return cutOf(e, "base") },
			then: []string{
				"new 402+2,ro,locked name=new" + newTags, "snapshot0 gone",
				"cut 450+2,hidden role=layer of=base order=3 created=now length=65536 chunk=32",
				"snapshot0 base<cut", "free -450+2",
			}},
		{what: "cut of a fork", given: []string{forkLine, storeLine}, edit: func(e *Edit) error { return cutOf(e, "fork") },
			then: []string{"cut 450+2,hidden,locked role=layer of=fork order=1 created=now length=65536 chunk=32", "snapshot1 fork<cut", "free -450+2"}},
	})
}

// TestWithdraw_edits: a cut that is taken back leaves the group as it was before, but for its
// store, which is trash. Changes of the former layer meanwhile stay.
func TestWithdraw_edits(t *testing.T) {
	taken := func(of string, meanwhile func(e *Edit) error) func(e *Edit) error {
		return func(e *Edit) error {
			err := cutOf(e, of)
			if err == nil && meanwhile != nil {
				err = meanwhile(e)
			}
			if err != nil {
				return err
			}
			after := &Edit{View: NewView(e.VG, e.View)}
			return after.Withdraw(after.VolumeByLV(of).Live())
		}
	}
	testEdits(t, []editCase{
		{what: "first cut", edit: taken("bare", nil), then: []string{"trash 450+2,inactive role=trash", "free -450+2"}},
		{what: "next cut", edit: taken("base", nil), then: []string{"snapshot0 gone", "snapshot0 base<new", "trash 450+2,inactive role=trash", "free -450+2"}},
		{what: "the former store has grown", edit: taken("base", func(e *Edit) error {
			c := e.VG.LV("new").Clone()
			c.Segments = AppendExtents(c.Segments, e.Take(lvm2.Range{Start: 404, Count: 1})...)
			return e.Put(c)
		}), then: []string{"snapshot0 gone", "snapshot0 base<new", "new 402+3,hidden name=new" + newTags, "trash 450+2,inactive role=trash", "free -404+1/450+2"}},
		{what: "the former layer was removed before the cut", edit: func(e *Edit) error {
			l := e.Snapshots.Get("new")
			if err := errors.Join(e.Remove(l.Snap.ID), e.Remove(l.LV.ID)); err != nil {
				return err
			}
			return taken("base", nil)(&Edit{View: NewView(e.VG, e.View)})
		}, then: []string{"new gone", "snapshot0 gone", "trash 450+2,inactive role=trash", "free +402+2", "free -450+2"}},
		{what: "cut of a fork", given: []string{forkLine, storeLine}, edit: taken("fork", nil),
			then: []string{"trash 450+2,inactive role=trash", "free -450+2"}},
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
