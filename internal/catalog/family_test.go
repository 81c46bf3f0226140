package catalog

import (
	"errors"
	"testing"
)

// Tags by which a volume reads through itself are an error, not a loop without end.
func TestCircular_changedTags(t *testing.T) {
	v := rollbackGroup(t)
	layer := v.Snapshots["old"].LV.ID
	c := v.VolumeByLV("base").LV.Clone()
	c.Tags = append(c.Tags, Tag(tagCopy, string(layer)))
	e := &Edit{View: v}
	if err := e.Put(c); err != nil {
		t.Fatal(err)
	}
	now := NewView(e.VG, nil)
	o := now.VolumeByLV("base")
	if got := now.Family("base"); len(got) != 1 {
		t.Errorf("its family is %v", got)
	}
	o.Fork = &ForkStore{LV: o.LV, of: o.LV.ID}
	if _, _, err := now.Origin(o); !errors.Is(err, ErrPrecondition) {
		t.Errorf("what it reads through: %v", err)
	}
}
