package pool

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

// isTheirs reports whether lv is LVM2's own: it has no tags that make it ours.
func (v *view) isTheirs(lv *lvm2.LV) bool {
	_, is := v.decoded[lv].(foreign)
	return is
}

// isTrash reports whether lv is to be wiped, and then given back.
func (v *view) isTrash(lv *lvm2.LV) bool {
	_, is := v.decoded[lv].(trashed)
	return is
}

// isStore reports whether lv is the store of a layer or of a fork.
func (v *view) isStore(lv *lvm2.LV) bool {
	switch v.decoded[lv].(type) {
	case *layer, *fork:
		return true
	}
	return false
}

// shares returns what volumes take of the pool, what stores of all kinds, and what trash does.
func (v *view) shares() (blocks, stores, trash size.Bytes) {
	for _, lv := range v.vg.LVs {
		if snapshotSegment(lv) != nil {
			continue // has no extents
		}
		switch v.decoded[lv].(type) {
		case *volume:
			blocks += v.taken(lv)
		case *layer, *fork, *flat:
			stores += v.bytesOf(lv)
		case trashed:
			trash += v.bytesOf(lv)
		}
	}
	return blocks, stores, trash
}
