package catalog

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestShorten_edits: Shorten frees wiped extents from the end of trash, and nothing of a
// logical volume that is no trash, or is gone.
func TestShorten_edits(t *testing.T) {
	shorten := func(lv string, n lvm2.Extents) func(e *Edit) error {
		return func(e *Edit) error {
			id := lvm2.NewID()
			if lv := e.VG.LV(lv); lv != nil {
				id = lv.ID
			}
			return e.Shorten(id, n)
		}
	}
	given := []string{"trash 30+4/40+2,inactive role=trash"}
	testEdits(t, []editCase{
		{what: "last piece and a part of the first", given: given, edit: shorten("trash", 3),
			then: []string{"trash 30+3,inactive role=trash", "free +33+1/40+2", "wiped 33+1/40+2"}},
		{what: "all", given: given, edit: shorten("trash", 6),
			then: []string{"trash gone", "free +30+4/40+2", "wiped 30+4/40+2"}},
		{what: "nothing", given: given, edit: shorten("trash", 0)},
		{what: "volume", edit: shorten("bare", 3)},
		{what: "logical volume of LVM2's own", given: []string{"trash 30+4"}, edit: shorten("trash", 3)},
		{what: "removed", edit: shorten("removed", 3)},
	})
}
