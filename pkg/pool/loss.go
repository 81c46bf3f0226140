package pool

import (
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// unrecordedLoss says that the kernel dropped a layer and the metadata does not
// say so yet. Until it does the layer's device must stay.
type unrecordedLoss struct{ volume, layer lvm2.ID }

func (e *unrecordedLoss) Error() string {
	return fmt.Sprintf("the store of layer %s overflowed: %v", e.layer, ErrLost)
}

// record is the change that writes the loss down.
func (e *unrecordedLoss) record() *change {
	return &change{what: "record that a snapshot is lost", fast: true, edit: func(t *edit) error {
		o := t.volumes[e.volume]
		if o == nil {
			return nil
		}
		for _, l := range o.layers {
			if l.lv.ID == e.layer {
				return t.lose(o, l)
			}
		}
		return nil
	}}
}

// lose marks a layer and all that read through it as lost.
func (t *edit) lose(o *volume, dead *layer) error {
	gone := map[*layer]bool{dead: true}
	for i, l := range slices.Backward(o.layers) {
		if !gone[l] && !gone[o.nextOf(i)] {
			continue
		}
		gone[l] = true
		c := l.lv.Clone()
		c.Tags = setTag(c.Tags, tagLost)
		if err := t.put(c); err != nil {
			return err
		}
	}
	return nil
}
