package catalog

import (
	"testing"
)

// The tags of the layers in catalogtest.Group without a name.
const (
	oldTags = " role=layer of=base order=1 created=1 length=65536 chunk=32 "
	newTags = " role=layer of=base order=2 created=1 length=65536 chunk=32 "
)

// A fork of the snapshot old, a volume that shows old, and a flat store of old.
const (
	forkLine   = "fork 16+8,locked role=volume name=pvc-3 mode=block copy=old"
	storeLine  = "store 404+2,locked role=fork of=fork chunk=32"
	readerLine = "reader 0+8,error,ro,locked role=volume name=pvc-4 mode=block readonly reads=old"
	flatLine   = "flat 410+1,ro,locked role=flat of=base reads=old over=new chunk=32"
)

// TestDeleteVolume_edits: a volume that nothing needs becomes trash with all its stores, and a
// volume whose snapshots are needed loses its name and is hidden from LVM2.
func TestDeleteVolume_edits(t *testing.T) {
	remove := func(lv string) func(e *Edit) error {
		return func(e *Edit) error { return e.DeleteVolume(e.VolumeByLV(lv)) }
	}
	testEdits(t, []editCase{
		{what: "no snapshots", edit: remove("bare"),
			then: []string{"bare:trash 8+8,inactive role=trash"}},
		{what: "snapshots", edit: remove("base"),
			then: []string{"base 0+8,locked role=volume mode=block deleted theirs"}},
		{what: "layers without a name", given: []string{"old 400+2,ro,locked" + oldTags, "new 402+2,hidden" + newTags}, edit: remove("base"),
			then: []string{"base:trash 0+8,inactive role=trash", "old:trash 400+2,inactive role=trash", "new:trash 402+2,inactive role=trash", "snapshot0 gone"}},
		{what: "layers that a fork needs", given: []string{"old 400+2,ro,locked" + oldTags, "new 402+2,hidden" + newTags, forkLine, storeLine}, edit: remove("base"),
			then: []string{"base 0+8,locked role=volume mode=block deleted theirs"}},
		{what: "fork", given: []string{forkLine, storeLine}, edit: remove("fork"),
			then: []string{"fork:trash 16+8,inactive role=trash", "store:trash 404+2,inactive role=trash"}},
		{what: "last fork of a deleted volume", given: []string{
			"base 0+8,locked role=volume mode=block deleted", "old 400+2,ro,locked" + oldTags, "new 402+2,hidden" + newTags, forkLine, storeLine}, edit: remove("fork"),
			then: []string{
				"fork:trash 16+8,inactive role=trash", "store:trash 404+2,inactive role=trash",
				"base:trash 0+8,inactive role=trash", "old:trash 400+2,inactive role=trash", "new:trash 402+2,inactive role=trash", "snapshot0 gone",
			}},
		{what: "reader", given: []string{readerLine}, edit: remove("reader"),
			then: []string{"reader gone"}},
		{what: "last reader of a layer without a name", given: []string{"old 400+2,ro,locked" + oldTags, readerLine}, edit: remove("reader"),
			then: []string{"reader gone", "old:trash 400+2,inactive role=trash"}},
		{what: "tag that is not understood elsewhere", given: []string{"later 30+1 role=volume name=x mode=block later"}, edit: remove("bare"),
			then: []string{"bare 8+8,locked role=volume mode=block deleted"}},
		{what: "volume that LVM2 moves", given: []string{"bare 8+8,pvmove role=volume name=pvc-2 mode=block"}, edit: remove("bare"), err: ErrPrecondition},
	})
}

// TestUnname_edits: a snapshot without a name keeps its layer while an older snapshot, a fork or
// a reader reads through the layer. The last one takes a deleted volume's blocks with it.
func TestUnname_edits(t *testing.T) {
	unname := func(name string) func(e *Edit) error {
		return func(e *Edit) error { return e.Unname(e.Snapshots.Get(name)) }
	}
	testEdits(t, []editCase{
		{what: "oldest", edit: unname("old"),
			then: []string{"old:trash 400+2,inactive role=trash"}},
		{what: "older snapshot reads through it", edit: unname("new"),
			then: []string{"new 402+2,hidden" + newTags}},
		{what: "last one", given: []string{"old 400+2,ro,locked" + oldTags}, edit: unname("new"),
			then: []string{"old:trash 400+2,inactive role=trash", "new:trash 402+2,inactive role=trash", "snapshot0 gone"}},
		{what: "last one of a deleted volume", given: []string{"base 0+8,locked role=volume mode=block deleted", "old 400+2,ro,locked" + oldTags}, edit: unname("new"),
			then: []string{
				"old:trash 400+2,inactive role=trash", "new:trash 402+2,inactive role=trash", "snapshot0 gone",
				"base:trash 0+8,inactive role=trash",
			}},
		{what: "fork reads it", given: []string{forkLine, storeLine}, edit: unname("old"),
			then: []string{"old 400+2,ro,locked" + oldTags}},
		{what: "reader shows it", given: []string{readerLine}, edit: unname("old"),
			then: []string{"old 400+2,ro,locked" + oldTags}},
		{what: "flat store", given: []string{flatLine}, edit: unname("old"),
			then: []string{"old:trash 400+2,inactive role=trash", "flat:trash 410+1,inactive role=trash"}},
		{what: "tag that is not understood", given: []string{"later 30+1 role=volume name=x mode=block later"}, edit: unname("old"),
			then: []string{"old 400+2,ro,locked" + oldTags}},
	})
}

// TestProtect_edits: Protect hides from LVM2 what it would take for plain volumes, and leaves
// plain volumes and a live layer alone.
func TestProtect_edits(t *testing.T) {
	testEdits(t, []editCase{
		{what: "all is protected", given: []string{forkLine, storeLine, readerLine, flatLine}, edit: (*Edit).Protect},
		{what: "nothing is protected", given: []string{
			"base 0+8 role=volume mode=block deleted", "old 400+2,ro name=old" + oldTags, "fork 16+8 role=volume name=pvc-3 mode=block copy=old",
			"store 404+2 role=fork of=fork chunk=32", "reader 0+8,error,ro role=volume name=pvc-4 mode=block readonly reads=old",
			"flat 410+1,ro role=flat of=base reads=old over=new chunk=32", "copy 30+8 role=volume name=pvc-5 mode=block copying=" + "00000000000000000000000000000000/0",
		}, edit: (*Edit).Protect,
			then: []string{
				"base 0+8,locked role=volume mode=block deleted", "old 400+2,ro,locked name=old" + oldTags, forkLine, storeLine, readerLine, flatLine,
				"copy 30+8,locked role=volume name=pvc-5 mode=block copying=fork/0",
			}},
	})
}
