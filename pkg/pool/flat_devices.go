package pool

import (
	"context"
	"errors"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// shallow makes the device of l, which is read by the flat store f, over that of
// the layer below. One that is there gets another table: who reads it is not
// disturbed, and what lies above needs no suspension.
func (p *Pool) shallow(ctx context.Context, v *view, o *volume, l *layer, f *flat, over *layer) error {
	above, err := p.found(v.snapDevice(over.lv))
	if err != nil {
		return err
	}
	cowDev, err := p.flatUp(ctx, v, o, f)
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

// flatUp makes the device of a flat store. Its table has two pieces for each area,
// and one for each layer, so it is neither made nor read from the kernel where it
// must be what this process has loaded.
func (p *Pool) flatUp(ctx context.Context, v *view, o *volume, f *flat) (dm.Device, error) {
	d := v.cowDevice(f.lv)
	info, err := p.find(d)
	if err != nil {
		return dm.Device{}, err
	}
	p.notAwaited(f)
	if p.asLoaded(v, o, f, info) {
		return info.Device, nil
	}
	table, err := v.flatTable(o, f)
	if err != nil {
		return dm.Device{}, err
	}
	dev, pending, err := p.ensureFrom(info, d, table, true)
	if err == nil && pending {
		err = p.start(ctx, d, dev)
	}
	if err == nil {
		p.facts.tables.put(f.lv.ID, flatTable{dev, len(table), v.flatParts(o, f), v.disks()})
	}
	return dev, err
}

// flatTable is what the table of a flat store's device was made from.
type flatTable struct {
	dev    dm.Device
	length int         // segments
	parts  []*lvm2.LV  // one that was changed since is another one in the view
	disks  []dm.Device // of the group's physical volumes
}

// asLoaded says whether the device of a flat store has the table that it should have,
// as far as only this process changes it.
func (p *Pool) asLoaded(v *view, o *volume, f *flat, info *dm.Info) bool {
	was, known := p.facts.tables.get(f.lv.ID)
	return known && info != nil && info.Live && info.ReadOnly && !info.Suspended && !info.Loaded &&
		info.Device == was.dev && info.Targets == was.length &&
		slices.Equal(was.parts, v.flatParts(o, f)) && slices.Equal(was.disks, v.disks())
}

// flatParts are the logical volumes that a flat store is made of.
func (v *view) flatParts(o *volume, f *flat) []*lvm2.LV {
	parts := []*lvm2.LV{f.lv}
	for _, l := range o.path(v.layers[f.reads]) {
		if l.lv.ID == f.over {
			break
		}
		parts = append(parts, l.lv)
	}
	return parts
}

// disks are the devices of the physical volumes that are there.
func (v *view) disks() (all []dm.Device) {
	for _, pv := range v.vg.PVs {
		if pv.Missing() {
			all = append(all, dm.Device{})
		} else {
			all = append(all, diskOf(pv))
		}
	}
	return all
}

// flatsAsLoaded names the devices of flat stores that map nothing but extents of
// logical volumes of v.
func (p *Pool) flatsAsLoaded(v *view) (map[string]bool, error) {
	out := map[string]bool{}
	for _, o := range v.volumes {
		for _, f := range o.flats {
			if v.layers[f.reads] == nil || !p.facts.tables.has(f.lv.ID) {
				continue
			}
			info, err := p.find(v.cowDevice(f.lv))
			if err != nil {
				return nil, err
			}
			if p.asLoaded(v, o, f, info) {
				out[info.Name] = true
			}
		}
	}
	return out, nil
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

// flatDevices are the devices of the flat stores of a layer, without those that are
// being written.
func (p *Pool) flatDevices(v *view, l *layer) (all []device) {
	for _, f := range v.flats[l.lv.ID] {
		if written, asked := p.facts.flats.get(f.lv.ID); !asked || !written.IsZero() {
			all = append(all, v.cowDevice(f.lv))
		}
	}
	return all
}
