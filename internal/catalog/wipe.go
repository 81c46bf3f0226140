package catalog

import (
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// UnwipedFree returns the size of the free extents that may not hold zeroes.
func (v *View) UnwipedFree() size.Bytes {
	return size.Bytes(v.Free.Subtract(v.Clean).Size()) * v.ExtentSize()
}

// LessTrash reports whether after has trash that v does not have.
func (v *View) LessTrash(after *View) bool {
	if slices.Equal(v.Trash, after.Trash) {
		return false
	}
	known := make(map[lvm2.ID]bool, len(v.Trash))
	for _, lv := range v.Trash {
		known[lv.ID] = true
	}
	return slices.ContainsFunc(after.Trash, func(lv *lvm2.LV) bool { return !known[lv.ID] })
}

// TrimmedBy reports whether a store that could be trimmed in v need not, or cannot,
// be trimmed in after.
func (v *View) TrimmedBy(after *View) bool {
	for id := range v.untrimmed.All() {
		if !after.untrimmed.Has(id) {
			return true
		}
	}
	return false
}

// OtherDisks reports whether a physical volume is on another device in after than
// in v.
func (v *View) OtherDisks(after *View) bool {
	return slices.ContainsFunc(after.VG.PVs, func(pv *lvm2.PV) bool {
		k := v.VG.PVIndex(pv.ID)
		return k < 0 || !pv.SameDevice(v.VG.PVs[k])
	})
}

// NotReclaimed returns the error of an operation that could destroy data that is
// still needed.
func (v *View) NotReclaimed() error {
	return fmt.Errorf("%w: nothing is discarded in volume group %s while a tag is not understood: %w; remove the tag with lvchange --deltag, or use the version of csi-dmsnap that made it",
		ErrPrecondition, v.VG.Name, v.Unclear)
}

// Shorten frees the last n extents of a piece of trash, which were wiped.
func (t *Edit) Shorten(id lvm2.ID, n lvm2.Extents) error {
	lv := t.VG.LVByID(id)
	if n == 0 || lv == nil || !t.IsTrash(lv) {
		return nil
	}
	length := lv.Size()
	wiped, err := PhysicalOf(lv, RangeSet{{Start: length - n, Count: n}})
	if err != nil {
		return err
	}
	t.Wiped = t.Wiped.Union(NewRangeSet(wiped...))
	if n == length {
		return t.Remove(lv.ID)
	}
	left, err := PhysicalOf(lv, RangeSet{{Start: 0, Count: length - n}})
	if err != nil {
		return err
	}
	c := lv.Clone()
	c.Segments = AppendExtents(nil, left...)
	return t.Put(c)
}
