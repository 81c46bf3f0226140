package pool

import "testing"

// A fork whose tags an older or newer version has made may not lose what it
// reads through.
func TestStrangeForkPinsItsLayer(t *testing.T) {
	v := rollbackGroup(t)
	layer := v.snapshots["old"]
	for _, key := range []string{tagCopy, tagReads} {
		own := *v
		own.vg = v.vg.Clone()
		e := &edit{view: &own}
		c := v.volumeByLV("bare").lv.Clone()
		c.Tags = append(c.Tags, tag(key, string(layer.lv.ID)), tag(tagHydrated, "from here to there"))
		if err := e.put(c); err != nil {
			t.Fatal(err)
		}
		now := newView(e.vg, v)
		if len(now.strange) != 1 || now.volumeByLV("bare") != nil {
			t.Fatalf("%s: it is not strange: %v", key, now.strange)
		}
		if !now.pinned[layer.lv.ID] {
			t.Errorf("%s: its layer may be thrown away", key)
		}
	}
}
