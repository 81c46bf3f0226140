package catalog

import (
	"errors"
	"testing"
)

// TestCircular_changedTags: tags that let a volume read through itself cause an error, not an
// endless loop.
func TestCircular_changedTags(t *testing.T) {
	v := rollbackGroup(t)
	layer := v.Snapshots.Get("old").LV.ID
	c := v.VolumeByLV("base").LV.Clone()
	c.Tags = append(c.Tags, Tag(tagCopy, string(layer)))
	e := &Edit{View: v}
	if err := e.Put(c); err != nil {
		t.Fatal(err)
	}
	now := NewView(e.VG, nil)
	o := now.VolumeByLV("base")
	if got := now.Family("base"); len(got) != 1 {
		t.Errorf("the family of a volume that reads through itself is %v", got)
	}
	o.Fork = &ForkStore{LV: o.LV, of: o.LV.ID}
	if _, _, err := now.Origin(o); !errors.Is(err, ErrPrecondition) {
		t.Errorf("Origin returned %v, want ErrPrecondition", err)
	}
}
