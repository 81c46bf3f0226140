package pool

import (
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
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
func (p *Pool) asLoaded(v *view, o *catalog.Volume, f *catalog.Flat, info *dm.Info) bool {
	was, known := p.facts.tables.get(f.LV.ID)
	return known && info != nil && info.Live && info.ReadOnly && !info.Suspended && !info.Loaded &&
		info.Device == was.dev && info.Targets == was.length &&
		slices.Equal(was.parts, v.FlatParts(o, f)) && slices.Equal(was.disks, v.disks())
}

// disks returns the devices of the physical volumes, zero for a missing one.
func (v *view) disks() (all []dm.Device) {
	for _, pv := range v.VG.PVs {
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
	for _, o := range v.Volumes.All() {
		for _, f := range o.Flats {
			if v.Layers.Get(f.Reads) == nil || !p.facts.tables.has(f.LV.ID) {
				continue
			}
			info, err := p.find(v.cowDevice(f.LV))
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
func (p *Pool) flatWriting(f *catalog.Flat) bool {
	written, asked := p.facts.flats.get(f.LV.ID)
	return asked && written.IsZero()
}
