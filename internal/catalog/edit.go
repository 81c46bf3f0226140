package catalog

import (
	"errors"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// Edit is the metadata that a change may alter. If the edit fails, its alterations
// are dropped.
type Edit struct {
	*View            // the metadata with the earlier edits of this batch; VG is a copy that belongs to this edit
	Wiped   RangeSet // extents that this edit freed and that hold zeroes
	Changed bool
	Kernel  func(v *View, anew bool) ([]Mapping, error) // asks the kernel which extents its devices map; nil in tests without a kernel
	Asked   bool                                        // Kernel was asked, and Free excludes the mapped extents
	Mapped  []Mapping                                   // extents that are free in the metadata but that a device still maps
}

// Put adds or replaces a logical volume.
func (t *Edit) Put(lv *lvm2.LV) error {
	t.Changed = true
	if t.VG.LVByID(lv.ID) != nil {
		return inTheWay(t.VG.Replace(lv))
	}
	return t.VG.Add(lv)
}

// Remove takes a logical volume out of the group.
func (t *Edit) Remove(id lvm2.ID) error {
	t.Changed = true
	return inTheWay(t.VG.Remove(id))
}

// inTheWay marks errors that last until LVM2 finishes its own work on the volume:
// a pvmove, a merge, or a conversion to another segment type.
func inTheWay(err error) error {
	if errors.Is(err, lvm2.ErrLocked) || errors.Is(err, lvm2.ErrForeignSegment) {
		return fmt.Errorf("%w: %w", ErrPrecondition, err)
	}
	return err
}
