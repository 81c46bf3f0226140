package catalog

import (
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Untrimmed reports whether the store of a layer is frozen, and still has the
// length that it grew to.
func (l *Layer) Untrimmed() bool { return l.Snap == nil && !l.Lost && !l.Trimmed }

// ShrinkStore shortens a frozen layer's store to its used part. The rest becomes
// trash, because a power cut may have left copies there that the store does not
// list.
func (t *Edit) ShrinkStore(lv *lvm2.LV, used size.Sectors) error {
	keep := t.Extents(used.Bytes())
	if length := lv.Size(); keep < length {
		trash := NewTrash()
		end, err := PhysicalOf(lv, RangeSet{{Start: keep, Count: length - keep}})
		if err != nil {
			return err
		}
		rest, err := PhysicalOf(lv, RangeSet{{Start: 0, Count: keep}})
		if err != nil {
			return err
		}
		trash.Segments = AppendExtents(nil, end...)
		lv = lv.Clone()
		lv.Segments = AppendExtents(nil, rest...)
		lv.Tags = SetTag(lv.Tags, tagUsed, number(used))
		if err := t.Put(lv); err != nil {
			return err
		}
		return t.Put(trash)
	}
	return t.SetUsed(lv, used)
}
