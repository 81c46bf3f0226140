package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// unrecordedLoss is the error of a layer that is lost but not yet marked as lost in the
// metadata. The layer's device must stay until the loss is recorded.
type unrecordedLoss struct {
	layer lvm2.ID
	read  *view // view by which the store was read from the disks; nil if the kernel reported the loss
}

func (e *unrecordedLoss) Error() string {
	return fmt.Sprintf("the store of layer %s overflowed, or its device was removed by hand: %v", e.layer, ErrLost)
}

func (e *unrecordedLoss) Unwrap() error { return ErrLost }

// collected checks that the kernel copies originals of a writable volume into a layer. It
// returns *unrecordedLoss if another process removed the device of the live snapshot or
// loaded another table into it. A volume whose first cut has not reached the kernel yet is no
// origin there, and passes.
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
	// If the newest cut was committed but has not reached the kernel, the layer before it
	// is the lost one.
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

// begunInKernel reports whether a layer was live in the kernel. It was if it has a name or a
// reader, which a layer gets only later. It also was if its store has a device, and its
// snapshot device is either missing or running (a device without a live table still waits
// for its cut).
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

// before returns the layer before l; nil if there is none.
func (v *volume) before(l *layer) *layer {
	if i := v.index(l); i > 0 {
		return v.layers[i-1]
	}
	return nil
}

// tableOf returns a device's active table; nil if there is none.
func (p *Pool) tableOf(d device) (dm.Table, error) {
	info, err := p.find(d)
	if err != nil || info == nil || !info.Live {
		return nil, err
	}
	return p.dm.Table(info.Name)
}

// record records a loss in the metadata. If ctx ends first, record returns, and the loss may
// still be recorded later. A loss that was read from the disks is dropped if the store now
// has other extents, because LVM2 may have moved the store before the read. An act may call
// record, because urgent changes do not wait for acts.
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

// lose marks a layer, and all layers that read through it, as lost.
func (t *edit) lose(o *volume, dead *layer) error {
	if o.odd != nil {
		return fmt.Errorf("volume %s/%s: %w: cannot tell which snapshots are lost with %s: %s", t.vg.Name, o.lv.Name, ErrPrecondition, dead.lv.Name, o.theirs())
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

// recordLost records the loss of a layer that the kernel has marked invalid.
func (p *Pool) recordLost(ctx context.Context, id lvm2.ID) error {
	return p.do(ctx, &change{fast: true, what: "record the loss of a snapshot", edit: func(t *edit) error {
		l := t.layers[id]
		if l == nil || l.lost || !p.dropped(t.view.snapDevice(l.lv)) {
			return nil
		}
		return t.lose(t.volumes[l.of], l)
	}})
}

// losses looks for lost layers that the metadata does not mark as lost: layers that the
// kernel marked invalid, or whose device was removed. It returns *unrecordedLoss for the
// first one.
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

// recorded records a loss and switches the convergence to the metadata after it. A device may
// be suspended here, so an abandoned act checks its lease first instead of waiting for LVM2.
func (c *convergence) recorded(ctx context.Context, loss *unrecordedLoss) error {
	if err := c.view.lease.valid(); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, lateLimit) // LVM2 may have taken the lock just now
	defer cancel()
	if err := c.record(limited, loss); err != nil {
		return err
	}
	c.view = c.current.Load().leased(c.view.lease)
	members := c.members
	c.members = nil
	for _, o := range members {
		if now := c.view.volumes[o.lv.ID]; now != nil {
			c.members = append(c.members, now)
		}
	}
	if len(c.members) == 0 {
		return errLeft // LVM2 has removed all of them
	}
	return nil
}
