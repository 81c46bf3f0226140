package catalog

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestShrinkStore_edits: the end of a store becomes trash, not free, and a store without a
// whole unused extent only has its used size recorded.
func TestShrinkStore_edits(t *testing.T) {
	shrink := func(used size.Sectors) func(e *Edit) error {
		return func(e *Edit) error { return e.ShrinkStore(e.VG.LV("old"), used) }
	}
	given := []string{"old 400+2/410+3,ro,locked name=old exact" + oldTags}
	testEdits(t, []editCase{
		{what: "in the last piece", given: given, edit: shrink(3 * 8192),
			then: []string{"old 400+2/410+1,ro,locked name=old exact used=24576" + oldTags, "trash 411+2,inactive role=trash"}},
		{what: "in the first piece", given: given, edit: shrink(8191),
			then: []string{"old 400+1,ro,locked name=old exact used=8191" + oldTags, "trash 401+1/410+3,inactive role=trash"}},
		{what: "in the last extent", given: given, edit: shrink(4*8192 + 1),
			then: []string{"old 400+2/410+3,ro,locked name=old exact used=32769" + oldTags}},
		{what: "whole store", given: given, edit: shrink(5 * 8192),
			then: []string{"old 400+2/410+3,ro,locked name=old exact used=40960" + oldTags}},
	})
}
