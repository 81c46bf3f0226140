package catalog

import "testing"

// TestLose_edits: with a layer, all layers that read through it are lost, and no other.
func TestLose_edits(t *testing.T) {
	lose := func(name string) func(e *Edit) error {
		return func(e *Edit) error { return e.Lose(e.VolumeByLV("base"), e.Snapshots.Get(name)) }
	}
	testEdits(t, []editCase{
		{what: "oldest", edit: lose("old"),
			then: []string{"old 400+2,ro,locked name=old lost" + oldTags}},
		{what: "live one", edit: lose("new"),
			then: []string{"old 400+2,ro,locked name=old lost" + oldTags, "new 402+2,hidden name=new lost" + newTags}},
		{what: "beside another", given: []string{
			"beside 404+2,ro,locked name=beside role=layer of=base order=1 over=3 created=1 length=65536 chunk=32",
			"old 400+2,ro,locked name=old role=layer of=base order=2 created=1 length=65536 chunk=32",
			"new 402+2,hidden name=new role=layer of=base order=3 created=1 length=65536 chunk=32",
		}, edit: lose("old"),
			then: []string{"old 400+2,ro,locked name=old role=layer of=base order=2 created=1 length=65536 chunk=32 lost"}},
		{what: "tags that are not understood", given: []string{"old 400+2,ro,locked name=old later" + oldTags}, edit: lose("new"), err: ErrPrecondition},
	})
}
