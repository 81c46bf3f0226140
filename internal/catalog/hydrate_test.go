package catalog

import "testing"

// TestHydrated_edits: a hydrated fork is an ordinary volume for LVM2, and so is its live
// layer. Its store becomes trash, and so does a layer that nothing else needs.
func TestHydrated_edits(t *testing.T) {
	hydrated := func(e *Edit) error {
		o, l, _, err := e.ForkOf("fork")
		if err != nil {
			return err
		}
		return e.Hydrated(o, l)
	}
	const done = " hydrated=32768"
	const cut = "role=layer name=cut of=fork order=1 created=1 length=65536 chunk=32"
	testEdits(t, []editCase{
		{what: "snapshot stays", given: []string{forkLine + done, storeLine}, edit: hydrated,
			then: []string{"fork 16+8 role=volume name=pvc-3 mode=block", "store:trash 404+2,inactive role=trash"}},
		{what: "layer without a name", given: []string{"old 400+2,ro,locked" + oldTags, forkLine + done, storeLine}, edit: hydrated,
			then: []string{"fork 16+8 role=volume name=pvc-3 mode=block", "store:trash 404+2,inactive role=trash", "old:trash 400+2,inactive role=trash"}},
		{what: "deleted source", given: []string{
			"base 0+8,locked role=volume mode=block deleted", "old 400+2,ro,locked" + oldTags, "new 402+2,hidden" + newTags, forkLine, storeLine}, edit: hydrated,
			then: []string{
				"fork 16+8 role=volume name=pvc-3 mode=block", "store:trash 404+2,inactive role=trash",
				"base:trash 0+8,inactive role=trash", "old:trash 400+2,inactive role=trash", "new:trash 402+2,inactive role=trash", "snapshot0 gone",
			}},
		{what: "snapshots of its own", given: []string{forkLine + done, storeLine, "cut 420+2,hidden,locked " + cut},
			edit: func(e *Edit) error {
				o := e.VolumeByLV("fork")
				if err := e.Join(o, e.VG.LV("cut"), e.BytesOf(o.LV), 32); err != nil {
					return err
				}
				e.View = NewView(e.VG, nil)
				return hydrated(e)
			},
			then: []string{
				"fork 16+8 role=volume name=pvc-3 mode=block", "store:trash 404+2,inactive role=trash",
				"cut 420+2,hidden " + cut, "snapshot1 fork<cut",
			}},
		{what: "deleted fork", given: []string{
			"fork 16+8,locked role=volume mode=block deleted copy=old", storeLine, "cut 420+2,ro,locked " + cut}, edit: hydrated,
			then: []string{"fork 16+8,locked role=volume mode=block deleted", "store:trash 404+2,inactive role=trash"}},
		{what: "hydrated already", given: []string{"fork 16+8 role=volume name=pvc-3 mode=block"}, edit: hydrated, err: ErrHydrated},
		{what: "layer removed", given: []string{"fork 16+8,locked role=volume name=pvc-3 mode=block copy=00000000000000000000000000000001", storeLine}, edit: hydrated, err: ErrLost},
		{what: "store removed", given: []string{forkLine}, edit: hydrated, err: ErrLost},
		{what: "tag that is not understood", given: []string{forkLine + " later", storeLine}, edit: hydrated, err: ErrPrecondition},
	})
}
