package pool

import (
	"context"
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// unrecordedLoss says that the kernel dropped a layer and the metadata does not
// say so yet. Until it does the layer's device must stay.
type unrecordedLoss struct{ volume, layer lvm2.ID }

func (e *unrecordedLoss) Error() string {
	return fmt.Sprintf("the store of layer %s overflowed, or its device was removed by hand: %v", e.layer, ErrLost)
}

func (e *unrecordedLoss) Unwrap() error { return ErrLost }

// collected makes sure that a volume that can be written has what is overwritten
// copied into a layer: *unrecordedLoss if it has a snapshot and somebody removed the
// device of it, or gave that another table. Until its first cut has reached the
// kernel a volume is not a snapshot's origin there.
func (p *Pool) collected(v *view, o *volume) error {
	live := o.live()
	if live == nil || live.lost || o.theirs() != "" {
		return nil
	}
	top, err := p.tableOf(v.topDevice(o.lv))
	if err != nil || len(top) != 1 {
		return err
	}
	origin, is := top[0].Target.(dm.SnapshotOrigin)
	if !is {
		return nil
	}
	for _, l := range slices.Backward(o.layers) {
		table, err := p.tableOf(v.snapDevice(l.lv))
		if err != nil {
			return err
		}
		if len(table) != 1 {
			continue
		}
		if s, is := table[0].Target.(dm.Snapshot); is && s.Origin == origin.Origin {
			return nil
		}
	}
	// A cut that was committed and has not reached the kernel: it was the layer before.
	begun, err := p.begunInKernel(v, live)
	if err != nil {
		return err
	}
	dead := live
	if !begun {
		if dead = o.before(live); dead == nil || dead.lost {
			return nil
		}
	}
	return &unrecordedLoss{volume: o.lv.ID, layer: dead.lv.ID}
}

// begunInKernel tells whether a layer was live in the kernel: it has got its purpose,
// which comes after that; or it has the device of its store, and if the snapshot's is
// there it is not one that waits for its cut.
func (p *Pool) begunInKernel(v *view, l *layer) (bool, error) {
	if l.named || v.pinned[l.lv.ID] {
		return true, nil
	}
	store, err := p.find(v.cowDevice(l.lv))
	if err != nil || store == nil {
		return false, err
	}
	snap, err := p.find(v.snapDevice(l.lv))
	return snap == nil || snap.Live, err
}

// before returns the layer before l, nil if there is none.
func (v *volume) before(l *layer) *layer {
	if i := v.index(l); i > 0 {
		return v.layers[i-1]
	}
	return nil
}

// tableOf returns a device's live table, nil if there is none.
func (p *Pool) tableOf(d device) (dm.Table, error) {
	info, err := p.find(d)
	if err != nil || info == nil || !info.Live {
		return nil, err
	}
	return p.dm.Table(info.Name)
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
	if o.odd != nil {
		return fmt.Errorf("volume %s/%s: %w: which snapshots are lost with %s is not known: %s", t.vg.Name, o.lv.Name, ErrPrecondition, dead.lv.Name, o.theirs())
	}
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

// recordLost writes down that the kernel dropped a layer.
func (p *Pool) recordLost(ctx context.Context, id lvm2.ID) error {
	return p.do(ctx, &change{fast: true, what: "record the loss of a snapshot", edit: func(t *edit) error {
		l := t.layers[id]
		if l == nil || l.lost || !p.dropped(t.view.snapDevice(l.lv)) {
			return nil
		}
		return t.lose(t.volumes[l.of], l)
	}})
}
