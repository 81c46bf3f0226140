package pool

import (
	"fmt"
	"strconv"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// What a request asks for is a minimum, and a volume has more: whole extents, and
// what its file system needs. An equal request must be enough for a copy of it,
// also where csi-provisioner compares the two. So a volume remembers what was
// asked for, and a layer what was at its cut.

// setAsked records in lv's tags what was asked for a volume that has so much, if
// that is less. Nothing asked for is 0.
func setAsked(lv *lvm2.LV, asked, has size.Bytes) {
	lv.Tags = dropTags(lv.Tags, tagAsked)
	if asked != 0 && asked < has {
		lv.Tags = append(lv.Tags, tag(tagAsked, strconv.FormatUint(uint64(asked), 10)))
	}
}

// asked returns what was asked for what has so much, as it is recorded.
func asked(recorded, has size.Bytes) size.Bytes {
	if recorded == 0 {
		return has
	}
	return min(recorded, has)
}

// given is what a new volume gets for which spec asks.
func (v *view) given(spec VolumeSpec) size.Bytes {
	return max(spec.Size, spec.Least).RoundUp(v.extent())
}

// blankSize returns what spec asks for of a volume without a source.
func (v *view) blankSize(spec VolumeSpec) size.Bytes {
	want := spec.Size
	if want == 0 {
		if want = defaultSize; spec.Limit != 0 {
			want = min(want, spec.Limit/v.extent()*v.extent())
		}
	}
	return max(want, spec.Least)
}

// copyExtents returns the size in extents of the volume that spec asks for, which
// is made from from. What was asked for that, and what would be given as much, gets
// the same again. ErrOutOfRange for less.
func (v *view) copyExtents(spec VolumeSpec, from original) (lvm2.Extents, error) {
	if spec.Size != 0 && spec.Size < from.asked && v.given(spec) < from.length {
		return 0, fmt.Errorf("%w: %v requested, but the source has %v", ErrOutOfRange, spec.Size, from.length)
	}
	return v.extentsFor(max(spec.Size, from.length), spec.Limit)
}
