package catalog

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

// SetAsked records in lv's tags the size asked in the request, if it is smaller than the
// volume's size has. asked is 0 for a request without a size.
func SetAsked(lv *lvm2.LV, asked, has size.Bytes) {
	lv.Tags = DropTags(lv.Tags, tagAsked)
	if asked != 0 && asked < has {
		lv.Tags = append(lv.Tags, Tag(tagAsked, strconv.FormatUint(uint64(asked), 10)))
	}
}

// Asked returns the size in the request, given the recorded size and the actual size has.
func Asked(recorded, has size.Bytes) size.Bytes {
	if recorded == 0 {
		return has
	}
	return min(recorded, has)
}

// given returns the size of a new volume for spec.
func (v *View) given(spec VolumeSpec) size.Bytes {
	return max(spec.Size, spec.Least).RoundUp(v.ExtentSize())
}

// BlankSize returns the size that spec asks for, for a volume without a source.
func (v *View) BlankSize(spec VolumeSpec) size.Bytes {
	want := spec.Size
	if want == 0 {
		if want = defaultSize; spec.Limit != 0 {
			want = min(want, spec.Limit/v.ExtentSize()*v.ExtentSize())
		}
	}
	return max(want, spec.Least)
}

// CopyExtents returns the size, in extents, of the volume that spec asks for with the source
// from. A request for the same size as in the source's request, or for a size that would get
// the same extents, gets the source's size. Errors: ErrOutOfRange for a smaller request.
func (v *View) CopyExtents(spec VolumeSpec, from Original) (lvm2.Extents, error) {
	if spec.Size != 0 && spec.Size < from.asked && v.given(spec) < from.Length {
		return 0, fmt.Errorf("%w: %v requested, but the source has %v", ErrOutOfRange, spec.Size, from.Length)
	}
	return v.ExtentsFor(max(spec.Size, from.Length), spec.Limit)
}
