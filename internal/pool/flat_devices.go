package pool

import (
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// flatTable records the inputs of the table of a flat store's device.
type flatTable struct {
	dev    dm.Device
	length int         // segments
	parts  []*lvm2.LV  // compared by pointer: a changed logical volume is a new object in the view
	disks  []dm.Device // of the group's physical volumes
}

// asLoaded reports whether the device of a flat store still has the right table, assuming
// that no other process has loaded a table.
func (p *Pool) asLoaded(v *view, o *volume, f *flat, info *dm.Info) bool {
	was, known := p.facts.tables.get(f.lv.ID)
	return known && info != nil && info.Live && info.ReadOnly && !info.Suspended && !info.Loaded &&
		info.Device == was.dev && info.Targets == was.length &&
		slices.Equal(was.parts, v.flatParts(o, f)) && slices.Equal(was.disks, v.disks())
}

// flatParts returns the logical volumes that a flat store is made of.
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

// disks returns the devices of the physical volumes, zero for a missing one.
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

// flatsAsLoaded returns the names of the flat stores' devices whose table is known to map only
// extents of logical volumes of v.
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

// flatWriting reports whether the driver is writing a flat store through its device.
func (p *Pool) flatWriting(f *flat) bool {
	written, asked := p.facts.flats.get(f.lv.ID)
	return asked && written.IsZero()
}
