package catalog

import (
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// RecoveryChunk is the chunk size of the store for the replay of a journal: the smallest,
// because a replay writes single blocks.
const RecoveryChunk = cow.MinChunk

// Recoverable finds a read-only reader by the name of its logical volume.
func (v *View) Recoverable(lv string) (*Volume, error) {
	o, err := v.Usable(lv)
	if err == nil && (!o.Reading() || o.Transient) {
		err = fmt.Errorf("volume %s/%s: %w: it does not show a snapshot read-only", v.VG.Name, lv, ErrPrecondition)
	}
	return o, err
}

// MostRecovery returns the size of a store that can hold the whole content of a reader.
func (v *View) MostRecovery(o *Volume) lvm2.Extents {
	return v.Extents(cow.LargestUseful(v.BytesOf(o.LV), RecoveryChunk))
}

// Tidy discards layers and deleted volumes that nothing needs. A crash cannot leave
// them, but LVM2's lvremove of a snapshot can, and so can deletes while a tag was
// not understood.
func (t *Edit) Tidy() error {
	for _, o := range t.Volumes.All() {
		if err := t.TidyOne(o); err != nil {
			return err
		}
	}
	return nil
}

// TidyOne is Tidy for one volume.
func (t *Edit) TidyOne(o *Volume) error {
	if err := t.Discard(storesOf(t.unneeded(o))...); err != nil || !o.Deleted || !t.Disposable(o) {
		return err
	}
	return t.discardBlocks(o)
}

// Leftover reports whether nothing needs o, or some of its layers, any more.
func (v *View) Leftover(o *Volume) bool {
	return len(v.unneeded(o)) > 0 || o.Deleted && v.Disposable(o)
}
