package catalog

import (
	"fmt"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Edges returns the extents with the first and last MiB of o, where signatures of
// file systems lie.
func (v *View) Edges(o *Volume) RangeSet {
	head := v.head(o)
	return head.Union(RangeSet{{Start: o.LV.Size() - head.Size(), Count: head.Size()}})
}

// head returns the extents with the first MiB of o.
func (v *View) head(o *Volume) RangeSet {
	return RangeSet{{Count: min(v.Extents(size.MiB), o.LV.Size())}}
}

// zeroedHead removes the first extents from the extents that an older release
// recorded as unknown for o or for a layer of o. That release zeroed the first MiB of
// a volume, below its snapshots, before it formatted the volume, but did not record
// that. For a copy it is not certain that the head was zeroed, and for a former
// block volume it is false. The rest of a head extent may be unwiped. So if no
// other extent is unknown, the record stays as it is, lest the whole volume count
// as wiped.
func (v *View) zeroedHead(o *Volume, unknown RangeSet) RangeSet {
	if o.Mode != Filesystem || !o.Formatted || o.Raw || o.Source.Kind != FromNothing {
		return unknown
	}
	if rest := unknown.Subtract(v.head(o)); len(rest) > 0 {
		return rest
	}
	return unknown
}

// Presentable is the only check, at every activation, between a volume's content
// and its user. It returns an error if a block volume has extents that may hold an
// earlier owner's bytes, or if the first MiB of a file system that counts as made
// has such extents: then the file system may be the earlier owner's.
func (v *View) Presentable(o *Volume) error {
	seen := o.Unknown
	if o.Mode == Filesystem {
		seen = seen.Intersect(v.head(o))
	}
	at := v.VG.Name + "/" + o.LV.Name
	switch {
	case o.Mode == Filesystem && o.Reading() && !o.Transient && !o.Formatted:
		return fmt.Errorf("volume %s: %w: the volume had no file system yet when the snapshot was taken, so there is nothing to read; restore it to a writable volume, which gets a file system", at, ErrPrecondition)
	case len(seen) == 0:
		return nil
	case o.Mode == Block || !o.Formatted:
		return fmt.Errorf("volume %s was not wiped: %w: another process opened its device first", at, ErrInUse)
	}
	lv := o.LV
	if l := v.Layers.Get(o.Reads); l != nil && !o.Transient {
		lv = l.LV
	}
	var own []string
	p, _, _ := readProperties(lv.Tags)
	if text, has := p[tagUnknown]; has {
		own = append(own, "--deltag "+Tag(tagUnknown, text))
	}
	if rest := o.Unknown.Subtract(seen); len(rest) > 0 {
		own = append(own, "--addtag "+Tag(tagUnknown, unknownText(rest)))
	}
	at = v.VG.Name + "/" + lv.Name
	return fmt.Errorf("logical volume %s: %w: it counts as formatted, but its first extents may hold an earlier owner's file system; if nothing on it is needed, have it formatted again with lvchange --addtag %s %s; if the file system is its own, confirm that with lvchange %s %s",
		at, ErrPrecondition, Tag(tagUnformatted), at, strings.Join(own, " "), at)
}

// ReadsUnknown reports whether a fork reads parts of its snapshot that may hold an
// earlier owner's bytes.
func (v *View) ReadsUnknown(o *Volume) bool {
	l := v.Layers.Get(o.CopyOf)
	return l != nil && len(o.Unknown.Intersect(RangeSet{{Start: 0, Count: v.Extents(l.Length.Bytes())}})) > 0
}
