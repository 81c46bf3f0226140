package pool

import (
	"errors"
	"testing"
)

// Tags by which a volume reads through itself are an error, not a loop without end.
func TestCircularTags(t *testing.T) {
	v := rollbackGroup(t)
	layer := v.snapshots["old"].lv.ID
	c := v.volumeByLV("base").lv.Clone()
	c.Tags = append(c.Tags, tag(tagCopy, string(layer)))
	e := &edit{view: v}
	if err := e.put(c); err != nil {
		t.Fatal(err)
	}
	now := newView(e.vg, nil)
	o := now.volumeByLV("base")
	if got := now.family("base"); len(got) != 1 {
		t.Errorf("its family is %v", got)
	}
	o.fork = &fork{lv: o.lv, of: o.lv.ID}
	if _, _, err := now.origin(o); !errors.Is(err, ErrPrecondition) {
		t.Errorf("what it reads through: %v", err)
	}
}
