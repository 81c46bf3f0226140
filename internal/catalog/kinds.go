package catalog

import (
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// AnyKind stands for disks of any one kind.
const AnyKind size.Bytes = 0

// kinds lists the kinds of the group's disks, in the order of the disks.
func (v *View) kinds() (kinds []size.Bytes) {
	for _, pv := range v.VG.PVs {
		if pv.BlockSize != 0 && !slices.Contains(kinds, pv.BlockSize) {
			kinds = append(kinds, pv.BlockSize)
		}
	}
	return kinds
}

// KindsOf lists the kinds that block stands for.
func (v *View) KindsOf(block size.Bytes) []size.Bytes {
	if kinds := v.kinds(); block == AnyKind && len(kinds) > 0 {
		return kinds
	}
	return []size.Bytes{block}
}

// OnKind returns text, for messages, about the disks of a kind; "" if the group has disks of
// one kind only.
func (v *View) OnKind(block size.Bytes) string {
	switch {
	case len(v.kinds()) < 2:
		return ""
	case block == AnyKind:
		return " on disks with the same size of logical blocks"
	}
	return fmt.Sprintf(" on disks with logical blocks of %d bytes", uint64(block))
}

// FreeOn returns the free extents on disks of a kind.
func (v *View) FreeOn(block size.Bytes) RangeSet {
	if block == AnyKind || len(v.kinds()) < 2 {
		return v.Free
	}
	return v.Free.Intersect(v.DisksOn(block))
}

// DisksOn returns all extents on disks of a kind.
func (v *View) DisksOn(block size.Bytes) RangeSet {
	var out []lvm2.Range
	for n, pv := range v.VG.PVs {
		if block == AnyKind || pv.BlockSize == block || len(v.kinds()) < 2 {
			out = append(out, lvm2.Range{PV: n, Count: pv.PECount})
		}
	}
	return NewRangeSet(out...)
}

// FreeFor returns the free extents that may be added to lv.
func (v *View) FreeFor(lv *lvm2.LV) RangeSet { return v.FreeOn(v.GrowsOn(lv)) }

// GrowsOn returns the kind of the disks on which lv may grow.
func (v *View) GrowsOn(lv *lvm2.LV) size.Bytes {
	has, err := Physical(lv)
	if err != nil {
		return AnyKind
	}
	return v.VG.PVs[has[len(has)-1].PV].BlockSize
}

// SizeOn returns the size of the part of lv that lies on disks of a kind, in extents.
func (v *View) SizeOn(lv *lvm2.LV, kind size.Bytes) (n lvm2.Extents) {
	if kind == AnyKind || len(v.kinds()) < 2 {
		return lv.Size()
	}
	has, err := Physical(lv)
	if err != nil {
		return 0
	}
	for _, r := range has {
		if v.VG.PVs[r.PV].BlockSize == kind {
			n += r.Count
		}
	}
	return n
}

// TrashOn returns the size of the trash on disks of a kind, in extents.
func (v *View) TrashOn(kind size.Bytes) (n lvm2.Extents) {
	for _, lv := range v.Trash {
		n += v.SizeOn(lv, kind)
	}
	return n
}

// Kind returns the kind of the disks on which stacked logical volumes lie. Errors:
// ErrPrecondition if there are several kinds.
func (v *View) Kind(stacked ...*lvm2.LV) (size.Bytes, error) {
	kind := AnyKind
	for _, lv := range stacked {
		for _, s := range lv.Segments {
			for _, stripe := range s.Stripes {
				if stripe.PV < 0 || v.VG.PVs[stripe.PV].BlockSize == 0 {
					continue
				}
				block := v.VG.PVs[stripe.PV].BlockSize
				if kind != AnyKind && block != kind {
					return 0, fmt.Errorf("%w: logical volume %s/%s, or a volume that it is stacked with, is on disks with logical blocks of %d and of %d bytes: "+
						"it might be impossible to mount a copy of its file system; move it to disks of one kind with pvmove", ErrPrecondition, v.VG.Name, lv.Name, uint64(kind), uint64(block))
				}
				kind = block
			}
		}
	}
	return kind, nil
}

// KindOf returns the kind of the disks on which a volume and its snapshots lie. Errors:
// ErrPrecondition if there are several kinds.
func (v *View) KindOf(o *Volume) (size.Bytes, error) {
	stacked := []*lvm2.LV{o.LV}
	for _, l := range o.Layers {
		stacked = append(stacked, l.LV)
	}
	if o.Fork != nil {
		stacked = append(stacked, o.Fork.LV)
	}
	return v.Kind(stacked...)
}

// Mixed returns a message if the group has disks of several kinds; "" otherwise.
func (v *View) Mixed() string {
	kinds := v.kinds()
	if len(kinds) < 2 {
		return ""
	}
	text := fmt.Sprintf("volume group %s has disks with logical blocks of", v.VG.Name)
	for _, block := range kinds {
		text += fmt.Sprintf(" %d bytes (", uint64(block))
		for n, pv := range v.VG.PVs {
			if pv.BlockSize == block {
				text += v.VG.PVs[n].Device + " "
			}
		}
		text = text[:len(text)-1] + "),"
	}
	return text[:len(text)-1] + ": a volume and its snapshots stay on disks of one kind, so they have room only there"
}
