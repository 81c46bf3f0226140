package catalog

import (
	"fmt"
	"iter"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// ForkStore is the store of a fork: a logical volume of role fork that takes the fork's writes.
type ForkStore struct {
	LV    *lvm2.LV
	of    lvm2.ID
	Chunk size.Sectors
	odd   error // set if a tag is not understood
}

// Forks iterates over the forks whose stores are there.
func (v *View) Forks() iter.Seq[*Volume] {
	return func(yield func(*Volume) bool) {
		for _, f := range v.forks.All() {
			if !yield(v.Volumes.Get(f.of)) {
				return
			}
		}
	}
}

// Forked reports whether v is a fork that is not hydrated yet.
func (v *Volume) Forked() bool { return v.CopyOf != "" }

// Origin returns the layer that the fork o reads through, and the volume of the layer.
// Errors: ErrLost if the layer or the fork's store was removed.
func (v *View) Origin(o *Volume) (*Layer, *Volume, error) {
	l := v.Layers.Get(o.CopyOf)
	if l == nil {
		return nil, nil, fmt.Errorf("volume %s/%s: %w: the layer %s that it reads through was removed", v.VG.Name, o.LV.Name, ErrLost, o.CopyOf)
	}
	if o.Fork == nil {
		return nil, nil, fmt.Errorf("volume %s/%s: %w: the store that holds its writes was removed", v.VG.Name, o.LV.Name, ErrLost)
	}
	return l, v.Volumes.Get(l.Of), v.Circular(o)
}

// Original is the source of a new volume: a layer, or a volume that must be cut first.
type Original struct {
	Volume    *Volume
	Layer     *Layer // nil if a layer must be cut
	Length    size.Bytes
	asked     size.Bytes // size in the request that led to Length
	Formatted bool       // it has had a file system, or is a block volume
	Unknown   RangeSet   // extents that may hold an earlier owner's bytes
}

// ContentAt returns the content of o at the cut of l.
func ContentAt(o *Volume, l *Layer) Original {
	return Original{Volume: o, Layer: l, Length: l.Length.Bytes(), asked: Asked(l.Asked, l.Length.Bytes()), Formatted: !l.Blank, Unknown: l.unknown}
}

// Shows reports whether the volume is to be a reader, which shows its source and is never
// copied.
func (s VolumeSpec) Shows() bool { return s.ReadOnly || s.Transient }

// ContentOf finds the content of spec's source.
func (v *View) ContentOf(spec VolumeSpec) (from Original, err error) {
	var l *Layer
	var o *Volume
	if spec.Source.Kind == FromSnapshot {
		if l = v.SnapshotByLV(spec.Source.LV); l == nil {
			return from, fmt.Errorf("snapshot %s/%s: %w", v.VG.Name, spec.Source.LV, ErrNotFound)
		}
		o = v.Volumes.Get(l.Of)
		if why := o.Theirs(); why != "" {
			return from, fmt.Errorf("snapshot %s/%s: %w: volume %s: %s", v.VG.Name, l.LV.Name, ErrPrecondition, o.LV.Name, why)
		}
		if v.LostSnapshot(l) {
			return from, fmt.Errorf("snapshot %s/%s: %w", v.VG.Name, l.LV.Name, ErrLost)
		}
		from = ContentAt(o, l)
	} else {
		if o, err = v.Changeable(spec.Source.LV); err != nil {
			return from, err
		}
		from = Original{Volume: o, Length: v.BytesOf(o.LV), asked: Asked(o.asked, v.BytesOf(o.LV)), Formatted: o.Formatted, Unknown: o.Unknown}
	}
	if spec.Mode == Filesystem && o.Mode == Filesystem && spec.FSType != o.FS {
		return from, fmt.Errorf("%w: file system %s requested, but the source has %s", ErrInvalid, spec.FSType, o.FS)
	}
	from.Formatted = from.Formatted || spec.Mode == Block || o.Mode == Block
	return from, v.ModeChange(spec, from)
}

// ModeChange returns an error for a change of mode that would show an earlier owner's bytes. A
// file system covers blocks that it never wrote, and a block volume may not be wiped yet.
func (v *View) ModeChange(spec VolumeSpec, from Original) error {
	if spec.Mode != from.Volume.Mode && len(from.Unknown) > 0 {
		return fmt.Errorf("volume %s/%s: %w: it cannot be copied to a %s volume: %s", v.VG.Name, from.Volume.LV.Name, ErrPrecondition, spec.Mode, from.notWiped())
	}
	return nil
}
