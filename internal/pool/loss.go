package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// unrecordedLoss says that the kernel dropped a layer and the metadata does not
// say so yet. Until it does the layer's device must stay.
type unrecordedLoss struct {
	layer lvm2.ID
	read  *view // by which its store was read on the disks; nil: the kernel has told it
}

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
	return &unrecordedLoss{layer: dead.lv.ID}
}

// begunInKernel reports whether a layer was live in the kernel: it has got its purpose,
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

// record writes a loss down, or leaves it when ctx ends: then it may be written down later.
// What was read on the disks is no loss if the store has other extents by now: LVM2 may
// have moved it before that.
// An act may call it: urgent changes do not wait for acts.
func (g *group) record(ctx context.Context, loss *unrecordedLoss) error {
	err := g.submit(ctx, &change{fast: true, loose: true, edit: func(t *edit) error {
		l := t.layers[loss.layer]
		if l == nil || l.lost || loss.read != nil && !sameExtents(loss.read.vg, loss.read.layers[loss.layer].lv, t.vg, l.lv) {
			return nil
		}
		return t.lose(t.volumes[l.of], l)
	}})
	if err != nil {
		return fmt.Errorf("recording that a snapshot is lost: %w", err)
	}
	return nil
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

// losses looks for layers that the kernel dropped, or that somebody removed the device
// of, and that the metadata does not say are lost: *unrecordedLoss.
func (c *convergence) losses(k kernel) error {
	for _, o := range c.members {
		if o.theirs() != "" || c.stuck[o.lv.ID] != nil {
			continue
		}
		if err := c.collected(c.view, o); errors.As(err, new(*unrecordedLoss)) {
			return err
		} else if err != nil {
			c.stuck[o.lv.ID] = err
			continue
		}
		for _, l := range o.layers {
			d := c.view.snapDevice(l.lv)
			if x := k[d.uuid]; x != nil && x.Live && !l.lost && c.dropped(device{name: x.Name}) {
				return &unrecordedLoss{layer: l.lv.ID}
			}
		}
	}
	return nil
}

// recorded writes a loss down and goes on with the metadata after that. A device may be
// suspended: an act that was left behind does not wait for LVM2 with that.
func (c *convergence) recorded(ctx context.Context, loss *unrecordedLoss) error {
	if err := c.view.lease.valid(); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, lateLimit) // the lock may have been given back just now
	defer cancel()
	if err := c.record(limited, loss); err != nil {
		return err
	}
	c.view = c.current.Load().leased(c.view.lease)
	members := c.members
	c.members = nil
	for _, o := range members {
		if o := c.view.volumes[o.lv.ID]; o != nil {
			c.members = append(c.members, o)
		}
	}
	if len(c.members) == 0 {
		return errLeft // LVM2 has removed all of them
	}
	return nil
}
