package pool

import (
	"context"
	"errors"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// eachGate calls f for the gates of the group, and says whether the newest metadata
// need the store that each belongs to.
func (p *Pool) eachGate(f func(e dm.ListEntry, id lvm2.ID, needed bool) error) error {
	all, err := p.dm.List()
	if err != nil {
		return err
	}
	v := p.current.Load() // not before: the metadata come before the devices
	if v == nil {
		return nil
	}
	trash := map[lvm2.ID]bool{}
	for _, lv := range v.trash {
		trash[lv.ID] = true
	}
	var errs []error
	for _, e := range all {
		id, is := splitGate(v.vg.ID, e.UUID)
		if !is {
			continue
		}
		l := v.layers[id]
		if err := f(e, id, v.vg.LVByID(id) != nil && !trash[id] && (l == nil || !l.lost)); !errors.Is(err, dm.ErrNotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// openUnneeded lets go on who waits for room in a store that nobody needs any more.
// Without it nothing could be suspended on which that writer's I/O is under way.
func (p *Pool) openUnneeded() error {
	if !p.config.Gate {
		return nil
	}
	return p.eachGate(func(e dm.ListEntry, _ lvm2.ID, needed bool) error {
		if needed {
			return nil
		}
		return p.resumeGate(e.Name)
	})
}

// sweepGates removes gates of stores that nobody needs, or that have no device.
func (p *Pool) sweepGates(ctx context.Context) error {
	if err := p.openUnneeded(); err != nil {
		return err
	}
	v := p.current.Load()
	return p.eachGate(func(e dm.ListEntry, id lvm2.ID, needed bool) error {
		return p.alone(ctx, id, func() error { // a gate is there before the device that leads to it
			info, err := p.dm.Info(e.Name)
			if err != nil || info.OpenCount > 0 {
				return err
			}
			if needed {
				store, err := p.dm.InfoByUUID(lvm2.DMUUID(v.vg.ID, id, layerCOW))
				if err == nil && store.Live || err != nil && !errors.Is(err, dm.ErrNotFound) {
					return err
				}
			}
			return p.removeDevice(ctx, e.Name, udevCOW)
		})
	})
}

// closeGates closes those that the driver has opened when it left: nothing else
// may need room before.
func (p *Pool) closeGates(ctx context.Context) error {
	return p.eachGate(func(e dm.ListEntry, _ lvm2.ID, needed bool) error {
		table, err := p.dm.Table(e.Name)
		if err != nil || !needed || !(&gate{table: table}).closed() {
			return err
		}
		if !p.config.Gate { // any more
			return p.resumeGate(e.Name)
		}
		if err := p.dm.Clear(e.Name); err != nil { // a growth was about to open it
			return err
		}
		return p.dm.Suspend(ctx, e.Name, dm.SuspendOptions{SkipLockFS: true})
	})
}
