package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
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
	return fmt.Sprintf("the store of layer %s overflowed or was lost by a disk, or its device was removed by hand: %v", e.layer, ErrLost)
}

func (e *unrecordedLoss) Unwrap() error { return ErrLost }

// collected checks that the kernel copies originals of a writable volume into a layer. It
// returns *unrecordedLoss if another process removed the device of the live snapshot or
// loaded another table into it. A volume whose first cut has not reached the kernel yet is no
// origin there, and passes.
func (p *Pool) collected(v *view, o *catalog.Volume) error {
	live := o.Live()
	if live == nil || live.Lost || o.Theirs() != "" {
		return nil
	}
	top, err := p.tableOf(v.topDevice(o.LV))
	if err != nil || len(top) != 1 {
		return err
	}
	origin, is := top[0].Target.(dm.SnapshotOrigin)
	if !is {
		return nil
	}
	for _, l := range slices.Backward(o.Layers) {
		table, err := p.tableOf(v.snapDevice(l.LV))
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
		if dead = o.Before(live); dead == nil || dead.Lost {
			return nil
		}
	}
	return &unrecordedLoss{layer: dead.LV.ID}
}

// begunInKernel reports whether a layer was live in the kernel. It was if it has a name, or
// if a fork or a reader reads it: a layer gets these only after its cut. It also was if its
// store has a device, and its snapshot device is either missing or has an active table. A
// snapshot device without an active table still waits for its cut.
func (p *Pool) begunInKernel(v *view, l *catalog.Layer) (bool, error) {
	if l.Named || v.Pinned.Has(l.LV.ID) {
		return true, nil
	}
	store, err := p.find(v.cowDevice(l.LV))
	if err != nil || store == nil {
		return false, err
	}
	snap, err := p.find(v.snapDevice(l.LV))
	return snap == nil || snap.Live, err
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
		l := t.Layers.Get(loss.layer)
		if l == nil || l.Lost || loss.read != nil && !catalog.SameExtents(loss.read.VG, loss.read.Layers.Get(loss.layer).LV, t.VG, l.LV) {
			return nil
		}
		return t.Lose(t.Volumes.Get(l.Of), l)
	}})
	if err != nil {
		return fmt.Errorf("recording that a snapshot is lost: %w", err)
	}
	return nil
}

// recordLost records the loss of a layer that the kernel has marked invalid.
func (p *Pool) recordLost(ctx context.Context, id lvm2.ID) error {
	return p.do(ctx, &change{fast: true, what: "record the loss of a snapshot", edit: func(t *edit) error {
		l := t.Layers.Get(id)
		if l == nil || l.Lost || !p.dropped(t.view().snapDevice(l.LV)) {
			return nil
		}
		return t.Lose(t.Volumes.Get(l.Of), l)
	}})
}

// losses looks for lost layers that the metadata does not mark as lost: layers that the
// kernel marked invalid, or whose device was removed. It returns *unrecordedLoss for the
// first one.
func (c *convergence) losses(k kernel) error {
	for _, o := range c.members {
		if o.Theirs() != "" || c.stuck[o.LV.ID] != nil {
			continue
		}
		if err := c.collected(c.view, o); errors.As(err, new(*unrecordedLoss)) {
			return err
		} else if err != nil {
			c.stuck[o.LV.ID] = err
			continue
		}
		for _, l := range o.Layers {
			d := c.view.snapDevice(l.LV)
			if x := k[d.uuid]; x != nil && x.Live && !l.Lost && c.dropped(device{name: x.Name}) {
				return &unrecordedLoss{layer: l.LV.ID}
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
		if now := c.view.Volumes.Get(o.LV.ID); now != nil {
			c.members = append(c.members, now)
		}
	}
	if len(c.members) == 0 {
		return errLeft // LVM2 has removed all of them
	}
	return nil
}
