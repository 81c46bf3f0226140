package catalog

import (
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Mapping is a part of a physical volume that a device maps.
type Mapping struct {
	Device string
	UUID   string
	Unread error // why the device's table cannot be read; the device may then map any extent of the physical volume
	lvm2.Range
}

// ExtentsAt returns the extents of a physical volume that overlap a piece of its device.
func (v *View) ExtentsAt(pv int, from, length size.Sectors) lvm2.Range {
	p, extent := v.VG.PVs[pv], v.VG.ExtentSize
	end := from + length
	if end <= p.PEStart || length == 0 {
		return lvm2.Range{}
	}
	first := (max(from, p.PEStart) - p.PEStart) / extent
	last := (end - p.PEStart + extent - 1) / extent
	if first := lvm2.Extents(first); first < p.PECount {
		return lvm2.Range{PV: pv, Start: first, Count: min(lvm2.Extents(last), p.PECount) - first}
	}
	return lvm2.Range{}
}

// WithoutMapped removes the extents that a device still maps from the free extents.
func (t *Edit) WithoutMapped() error {
	if t.Asked || t.Kernel == nil {
		return nil
	}
	for _, anew := range []bool{false, true} {
		all, err := t.Kernel(t.View, anew)
		if err != nil {
			return err
		}
		t.Asked, t.Mapped = true, nil
		for _, m := range all {
			if len(NewRangeSet(m.Range).Intersect(t.Free)) > 0 {
				t.Mapped = append(t.Mapped, m)
			}
		}
		if len(t.Mapped) == 0 { // otherwise ask again: an earlier change of this batch may have removed the device in the meantime
			return nil
		}
	}
	for _, m := range t.Mapped {
		t.Free = t.Free.Subtract(NewRangeSet(m.Range))
	}
	return nil
}

// stillMapped returns text, for an error, about a device that still maps free extents; "" if
// there is none.
func (t *Edit) stillMapped() string {
	if len(t.Mapped) == 0 {
		return ""
	}
	if m := t.Mapped[0]; m.Unread != nil {
		return fmt.Sprintf("; device %s may map other free extents, because its table cannot be read: %v; if nothing needs the device, remove it with dmsetup remove", m.Device, m.Unread)
	}
	return fmt.Sprintf("; device %s still maps other free extents, as after lvremove of a volume in use; if nothing needs the device, remove it with dmsetup remove", t.Mapped[0].Device)
}
