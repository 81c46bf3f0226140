package catalog

import (
	"fmt"
	"slices"
)

// Before returns the layer before l; nil if there is none.
func (v *Volume) Before(l *Layer) *Layer {
	if i := v.index(l); i > 0 {
		return v.Layers[i-1]
	}
	return nil
}

// FrozenFor returns the layer that the cut of l froze; nil if l was the first layer, or if
// the volume had no live layer then.
func (v *Volume) FrozenFor(l *Layer) *Layer {
	if former := v.Before(l); former != nil && v.next(former) == l {
		return former
	}
	return nil
}

// Lose marks a layer, and all layers that read through it, as lost.
func (t *Edit) Lose(o *Volume, dead *Layer) error {
	if o.Odd != nil {
		return fmt.Errorf("volume %s/%s: %w: cannot tell which snapshots are lost with %s: %s", t.VG.Name, o.LV.Name, ErrPrecondition, dead.LV.Name, o.Theirs())
	}
	gone := map[*Layer]bool{dead: true}
	for i, l := range slices.Backward(o.Layers) {
		if !gone[l] && !gone[o.NextOf(i)] {
			continue
		}
		gone[l] = true
		c := l.LV.Clone()
		c.Tags = SetTag(c.Tags, tagLost)
		if err := t.Put(c); err != nil {
			return err
		}
	}
	return nil
}
