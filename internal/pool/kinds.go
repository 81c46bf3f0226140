package pool

import (
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The kind of a disk is the size of its logical blocks: 512 or 4096 bytes. A device-mapper
// device has the largest block size of the devices below it, and a file system cannot be used
// with larger blocks than it was made with. So stacked devices, and all copies of a volume's
// content, lie on disks of one kind. A new pool has disks of one kind. In a group that lvm2
// has mixed, the driver treats the disks of each kind separately.

// anyKind stands for disks of any one kind.
const anyKind size.Bytes = 0

// kinds lists the kinds of the group's disks, in the order of the disks.
func (v *view) kinds() (kinds []size.Bytes) {
	for _, pv := range v.vg.PVs {
		if pv.BlockSize != 0 && !slices.Contains(kinds, pv.BlockSize) {
			kinds = append(kinds, pv.BlockSize)
		}
	}
	return kinds
}

// kindsOf lists the kinds that block stands for.
func (v *view) kindsOf(block size.Bytes) []size.Bytes {
	if kinds := v.kinds(); block == anyKind && len(kinds) > 0 {
		return kinds
	}
	return []size.Bytes{block}
}

// onKind returns text, for messages, about the disks of a kind; "" if the group has disks of
// one kind only.
func (v *view) onKind(block size.Bytes) string {
	switch {
	case len(v.kinds()) < 2:
		return ""
	case block == anyKind:
		return " on disks with the same size of logical blocks"
	}
	return fmt.Sprintf(" on disks with logical blocks of %d bytes", uint64(block))
}

// freeOn returns the free extents on disks of a kind.
func (v *view) freeOn(block size.Bytes) rangeSet {
	if block == anyKind || len(v.kinds()) < 2 {
		return v.free
	}
	return v.free.intersect(v.disksOn(block))
}

// disksOn returns all extents on disks of a kind.
func (v *view) disksOn(block size.Bytes) rangeSet {
	var out []lvm2.Range
	for n, pv := range v.vg.PVs {
		if block == anyKind || pv.BlockSize == block || len(v.kinds()) < 2 {
			out = append(out, lvm2.Range{PV: n, Count: pv.PECount})
		}
	}
	return newRangeSet(out...)
}

// freeFor returns the free extents that may be added to lv.
func (v *view) freeFor(lv *lvm2.LV) rangeSet { return v.freeOn(v.growsOn(lv)) }

// growsOn returns the kind of the disks on which lv may grow.
func (v *view) growsOn(lv *lvm2.LV) size.Bytes {
	has, err := physical(lv)
	if err != nil {
		return anyKind
	}
	return v.vg.PVs[has[len(has)-1].PV].BlockSize
}

// sizeOn returns the size of the part of lv that lies on disks of a kind, in extents.
func (v *view) sizeOn(lv *lvm2.LV, kind size.Bytes) (n lvm2.Extents) {
	if kind == anyKind || len(v.kinds()) < 2 {
		return lv.Size()
	}
	has, err := physical(lv)
	if err != nil {
		return 0
	}
	for _, r := range has {
		if v.vg.PVs[r.PV].BlockSize == kind {
			n += r.Count
		}
	}
	return n
}

// trashOn returns the size of the trash on disks of a kind, in extents.
func (v *view) trashOn(kind size.Bytes) (n lvm2.Extents) {
	for _, lv := range v.trash {
		n += v.sizeOn(lv, kind)
	}
	return n
}

// kind returns the kind of the disks on which stacked logical volumes lie. Errors:
// ErrPrecondition if there are several kinds.
func (v *view) kind(stacked ...*lvm2.LV) (size.Bytes, error) {
	kind := anyKind
	for _, lv := range stacked {
		for _, s := range lv.Segments {
			for _, stripe := range s.Stripes {
				if stripe.PV < 0 || v.vg.PVs[stripe.PV].BlockSize == 0 {
					continue
				}
				block := v.vg.PVs[stripe.PV].BlockSize
				if kind != anyKind && block != kind {
					return 0, fmt.Errorf("%w: logical volume %s/%s, or a volume that it is stacked with, is on disks with logical blocks of %d and of %d bytes: "+
						"it might be impossible to mount a copy of its file system; move it to disks of one kind with pvmove", ErrPrecondition, v.vg.Name, lv.Name, uint64(kind), uint64(block))
				}
				kind = block
			}
		}
	}
	return kind, nil
}

// kindOf returns the kind of the disks on which a volume and its snapshots lie. Errors:
// ErrPrecondition if there are several kinds.
func (v *view) kindOf(o *volume) (size.Bytes, error) {
	stacked := []*lvm2.LV{o.lv}
	for _, l := range o.layers {
		stacked = append(stacked, l.lv)
	}
	if o.fork != nil {
		stacked = append(stacked, o.fork.lv)
	}
	return v.kind(stacked...)
}

// mixed returns a message if the group has disks of several kinds; "" otherwise.
func (v *view) mixed() string {
	kinds := v.kinds()
	if len(kinds) < 2 {
		return ""
	}
	text := fmt.Sprintf("volume group %s has disks with logical blocks of", v.vg.Name)
	for _, block := range kinds {
		text += fmt.Sprintf(" %d bytes (", uint64(block))
		for n, pv := range v.vg.PVs {
			if pv.BlockSize == block {
				text += v.vg.PVs[n].Device + " "
			}
		}
		text = text[:len(text)-1] + "),"
	}
	return text[:len(text)-1] + ": a volume and its snapshots stay on disks of one kind, so they have room only there"
}

// ofOneKind selects the devices of a new group that have the most frequent block size, or the
// first one's in a tie. It returns the other devices with the reason.
func ofOneKind(devices []string) (kept []string, refused []LeftOut, err error) {
	count, blocks := map[size.Bytes]int{}, make([]size.Bytes, len(devices))
	for i, d := range devices {
		if blocks[i], err = lvm2.BlockSize(d); err != nil {
			return nil, nil, err
		}
		count[blocks[i]]++
	}
	var kind size.Bytes
	for _, b := range blocks {
		if kind == 0 || count[b] > count[kind] {
			kind = b
		}
	}
	for i, d := range devices {
		if blocks[i] == kind {
			kept = append(kept, d)
		} else {
			refused = append(refused, otherKind(d, fmt.Errorf("%w: %d bytes, but the pool's disks have %d", lvm2.ErrBlockSize, uint64(blocks[i]), uint64(kind))))
		}
	}
	return kept, refused, nil
}

// otherKind describes a device whose block size differs from the pool's disks.
func otherKind(device string, why error) LeftOut {
	return LeftOut{device, why.Error() + "; no file system could move between them, so use it for another pool", true, false}
}
