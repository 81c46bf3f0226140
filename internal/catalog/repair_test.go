package catalog

import "testing"

// TestTidy_edits: Tidy discards what nothing needs, in all volumes, and nothing else. After an
// lvremove of a layer it keeps the layers that lost snapshots still name.
func TestTidy_edits(t *testing.T) {
	testEdits(t, []editCase{
		{what: "nothing", given: []string{forkLine, storeLine, readerLine, flatLine}, edit: (*Edit).Tidy},
		{what: "layer without a name", given: []string{"old 400+2,ro,locked" + oldTags}, edit: (*Edit).Tidy,
			then: []string{"old:trash 400+2,inactive role=trash"}},
		{what: "deleted volumes", given: []string{
			"base 0+8,locked role=volume mode=block deleted", "old 400+2,ro,locked" + oldTags, "new 402+2,hidden" + newTags,
			"bare 8+8,locked role=volume mode=block deleted",
		}, edit: (*Edit).Tidy,
			then: []string{
				"base:trash 0+8,inactive role=trash", "old:trash 400+2,inactive role=trash", "new:trash 402+2,inactive role=trash", "snapshot0 gone",
				"bare:trash 8+8,inactive role=trash",
			}},
		{what: "deleted volume with a snapshot", given: []string{"base 0+8,locked role=volume mode=block deleted"}, edit: (*Edit).Tidy},
		{what: "layer between was removed", given: []string{"new 402+2,hidden role=layer of=base order=3 created=1 length=65536 chunk=32"}, edit: (*Edit).Tidy},
		{what: "two layers at one place", given: []string{"old 400+2,ro,locked role=layer of=base order=2 created=1 length=65536 chunk=32"}, edit: (*Edit).Tidy},
		{what: "tag that is not understood", given: []string{"old 400+2,ro,locked" + oldTags, "later 30+1 role=volume name=x mode=block later"}, edit: (*Edit).Tidy},
	})
}
