package catalog

import (
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The roles of the driver's logical volumes.
const (
	roleVolume = "volume"
	roleLayer  = "layer"
	roleFork   = "fork"
	roleFlat   = "flat"
	roleTrash  = "trash"
)

// IsTheirs reports whether lv is LVM2's own: it has no tag of csi-dmsnap, or only the tag
// static.
func (v *View) IsTheirs(lv *lvm2.LV) bool {
	_, is := v.form(lv).(foreign)
	return is
}

// IsTrash reports whether lv is trash: the wiper wipes and then frees its extents.
func (v *View) IsTrash(lv *lvm2.LV) bool {
	_, is := v.form(lv).(trashed)
	return is
}

// IsStore reports whether lv is the store of a layer or of a fork.
func (v *View) IsStore(lv *lvm2.LV) bool {
	switch v.form(lv).(type) {
	case *Layer, *ForkStore:
		return true
	}
	return false
}

// Shares returns the sizes of all volumes, of all stores, and of the trash.
func (v *View) Shares() (blocks, stores, trash size.Bytes) {
	for _, lv := range v.VG.LVs {
		if SnapshotSegment(lv) != nil {
			continue // has no extents
		}
		switch v.form(lv).(type) {
		case *Volume:
			blocks += v.Taken(lv)
		case *Layer, *ForkStore, *Flat:
			stores += v.BytesOf(lv)
		case trashed:
			trash += v.BytesOf(lv)
		}
	}
	return blocks, stores, trash
}
