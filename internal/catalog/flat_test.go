package catalog

import "testing"

// TestKeptOrNew_edits: a flat store takes the extents that are reserved for its layer, with new
// tags, and otherwise becomes a new logical volume.
func TestKeptOrNew_edits(t *testing.T) {
	put := func(e *Edit) error {
		old, live := e.Snapshots.Get("old"), e.Snapshots.Get("new")
		lv := e.KeptOrNew(&Flat{Of: old.Of, Reads: old.LV.ID, Over: live.LV.ID, Chunk: 16})
		if len(lv.Segments) == 0 {
			lv.Name, lv.Segments = "made", AppendExtents(nil, e.Take(e.Free[len(e.Free)-1:]...)...)
		}
		return e.Put(lv)
	}
	testEdits(t, []editCase{
		{what: "reserved", given: []string{flatLine}, edit: put,
			then: []string{"flat 410+1,ro,locked role=flat of=base reads=old over=new chunk=16"}},
		{what: "written", given: []string{flatLine + " used=64"}, edit: put,
			then: []string{"made 411+88,ro,locked role=flat of=base reads=old over=new chunk=16", "free -411+88"}},
		{what: "none", edit: put,
			then: []string{"made 404+95,ro,locked role=flat of=base reads=old over=new chunk=16", "free -404+95"}},
	})
}
