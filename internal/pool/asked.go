package pool

import (
	"fmt"
	"strconv"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The size in a request is a minimum. A volume may be larger: it has whole extents, and the
// size that its file system needs. A request for a copy with the same size must succeed, and
// csi-provisioner compares the two sizes. So a volume records the size in its request, and a
// layer the size in its volume's request at the cut.

// setAsked records in lv's tags the size asked in the request, if it is smaller than the
// volume's size has. asked is 0 for a request without a size.
func setAsked(lv *lvm2.LV, asked, has size.Bytes) {
	lv.Tags = dropTags(lv.Tags, tagAsked)
	if asked != 0 && asked < has {
		lv.Tags = append(lv.Tags, tag(tagAsked, strconv.FormatUint(uint64(asked), 10)))
	}
}

// asked returns the size in the request, given the recorded size and the actual size has.
func asked(recorded, has size.Bytes) size.Bytes {
	if recorded == 0 {
		return has
	}
	return min(recorded, has)
}

// given returns the size of a new volume for spec.
func (v *view) given(spec VolumeSpec) size.Bytes {
	return max(spec.Size, spec.Least).RoundUp(v.extent())
}

// blankSize returns the size that spec asks for, for a volume without a source.
func (v *view) blankSize(spec VolumeSpec) size.Bytes {
	want := spec.Size
	if want == 0 {
		if want = defaultSize; spec.Limit != 0 {
			want = min(want, spec.Limit/v.extent()*v.extent())
		}
	}
	return max(want, spec.Least)
}

// copyExtents returns the size, in extents, of the volume that spec asks for with the source
// from. A request for the same size as in the source's request, or for a size that would get
// the same extents, gets the source's size. Errors: ErrOutOfRange for a smaller request.
func (v *view) copyExtents(spec VolumeSpec, from original) (lvm2.Extents, error) {
	if spec.Size != 0 && spec.Size < from.asked && v.given(spec) < from.length {
		return 0, fmt.Errorf("%w: %v requested, but the source has %v", ErrOutOfRange, spec.Size, from.length)
	}
	return v.extentsFor(max(spec.Size, from.length), spec.Limit)
}
