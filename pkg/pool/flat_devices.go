package pool

import (
	"context"
	"errors"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// shallow makes the device of l, which is read by the flat store f, over that of
// the layer below. One that is there gets another table: who reads it is not
// disturbed, and what lies above needs no suspension.
func (p *Pool) shallow(ctx context.Context, v *view, o *volume, l *layer, f *flat, over *layer) error {
	above, err := p.found(v.snapDevice(over.lv))
	if err != nil {
		return err
	}
	table, err := v.flatTable(o, f)
	if err != nil {
		return err
	}
	store := v.cowDevice(f.lv)
	cowDev, pending, err := p.ensure(store, table, true)
	if err == nil && pending {
		err = p.start(ctx, store, cowDev)
	}
	if err != nil {
		return err
	}
	d := v.snapDevice(l.lv)
	before, err := p.find(d)
	if err != nil {
		return err
	}
	dev, pending, err := p.ensureFrom(before, d, whole(l.length, dm.Snapshot{
		Origin: above.Device, COW: cowDev, Persistence: dm.Persistent, Chunk: f.chunk,
	}), true)
	if err != nil || !pending {
		return err
	}
	if before == nil || !before.Live {
		return p.start(ctx, d, dev)
	}
	if err := p.swapTable(ctx, d, before.Suspended); err != nil {
		return err
	}
	return p.oldStoresDown(ctx, v, o, l)
}

// oldStoresDown removes the devices of stores that l's device does not lie on any more.
func (p *Pool) oldStoresDown(ctx context.Context, v *view, o *volume, l *layer) error {
	in, _ := v.flatOf(o, l)
	var old []device
	if in != nil {
		old = append(old, v.cowDevice(l.lv))
	}
	for _, f := range v.flats[l.lv.ID] {
		if f != in {
			old = append(old, v.cowDevice(f.lv))
		}
	}
	var errs []error
	for _, d := range old {
		info, err := p.find(d)
		if err == nil && info != nil && info.OpenCount == 0 {
			err = p.removeDevice(ctx, info.Name, d.udev)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// flatDevices are the devices of the flat stores of a layer.
func (v *view) flatDevices(l *layer) (all []device) {
	for _, f := range v.flats[l.lv.ID] {
		all = append(all, v.cowDevice(f.lv))
	}
	return all
}

// dropFlats makes the flat stores trash that nobody reads by, of a volume and of
// those that it reads through. Its key is held.
func (p *Pool) dropFlats(ctx context.Context, lv string) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(v.family(lv), func(lv string) bool { o := v.volumeByLV(lv); return o != nil && len(o.flats) > 0 }) {
		return nil
	}
	defer p.wiper.wake()
	return p.do(ctx, &change{what: "give back what an old snapshot of volume " + lv + " was read by", edit: func(t *edit) error {
		for _, lv := range t.family(lv) {
			if o := t.volumeByLV(lv); o != nil {
				if err := p.discardUnread(t, o); err != nil {
					return err
				}
			}
		}
		return nil
	}, act: p.sweep})
}

// discardIdle does what dropFlats does for all volumes, when a pool is opened.
func (p *Pool) discardIdle(t *edit) error {
	for _, o := range t.volumes {
		if err := p.discardUnread(t, o); err != nil {
			return err
		}
	}
	return nil
}

// discardUnread makes those flat stores of o trash that no snapshot's device lies on.
func (p *Pool) discardUnread(t *edit, o *volume) error {
	if t.unclear != nil {
		return nil
	}
	for _, f := range o.flats {
		info, err := p.find(t.cowDevice(f.lv))
		if err != nil {
			return err
		}
		if now := t.vg.LVByID(f.lv.ID); now != nil && linear(now) && (info == nil || info.OpenCount == 0) {
			if err := t.discard(now); err != nil {
				return err
			}
		}
	}
	return nil
}
