package catalog

import (
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// Reading reports whether v is a reader.
func (v *Volume) Reading() bool { return v.Reads != "" }

// From returns the layer that v reads through; "" if there is none.
func (v *Volume) From() lvm2.ID {
	if v.Reading() {
		return v.Reads
	}
	return v.CopyOf
}

// ReadFrom returns the layer that a reader shows, and the volume of the layer. Errors:
// ErrLost if the layer was removed.
func (v *View) ReadFrom(o *Volume) (*Layer, *Volume, error) {
	l := v.Layers.Get(o.Reads)
	if l == nil {
		return nil, nil, fmt.Errorf("volume %s/%s: %w: the layer %s that it shows was removed", v.VG.Name, o.LV.Name, ErrLost, o.Reads)
	}
	return l, v.Volumes.Get(l.Of), v.Circular(o)
}

// notAReader returns ErrPrecondition for a reader, in operations that need a volume with
// blocks of its own.
func (v *View) notAReader(o *Volume) error {
	switch {
	case !o.Reading():
		return nil
	case o.Transient:
		return fmt.Errorf("volume %s/%s: %w: it is transient: it does not keep its data, so it has no snapshots or clones, and always its snapshot's size",
			v.VG.Name, o.LV.Name, ErrPrecondition)
	}
	return fmt.Errorf("volume %s/%s: %w: it shows a snapshot read-only; take snapshots and clones of %s %[5]s instead, and restore %[5]s to get a larger volume",
		v.VG.Name, o.LV.Name, ErrPrecondition, o.Source.Kind, o.Source.LV)
}

// Showable returns an error if a volume of n extents cannot be a reader of its source.
func (t *Edit) Showable(spec VolumeSpec, from Original, n lvm2.Extents) error {
	if spec.LentTo != "" {
		return nil // CopyVolume copies the source, and wipes the rest
	}
	if spec.Mode == Block && len(from.Unknown) > 0 {
		return fmt.Errorf("%s %s/%s: %w: parts of it were never wiped, so it can only be restored to a writable volume",
			spec.Source.Kind, t.VG.Name, spec.Source.LV, ErrPrecondition)
	}
	if spec.ReadOnly && !from.Formatted {
		return fmt.Errorf("%s %s/%s: %w: the volume had no file system yet, so there is nothing to read; restore it to a writable volume, which gets a file system",
			spec.Source.Kind, t.VG.Name, spec.Source.LV, ErrPrecondition)
	}
	if n > t.Extents(from.Length) {
		return fmt.Errorf("%w: a read-only or transient volume has the size of its source, which is %v, but %v was requested", ErrOutOfRange, from.Length, spec.Size)
	}
	return nil
}

// takesNothing reports whether lv has no extents.
func takesNothing(lv *lvm2.LV) bool {
	return !slices.ContainsFunc(lv.Segments, func(s lvm2.Segment) bool { return s.Type != lvm2.TypeError })
}

const MostReaders = 64 // readers of one snapshot or volume; they take metadata, even without extents

// RoomForReader returns ErrNoSpace if a source has MostReaders readers.
func (v *View) RoomForReader(from Source) error {
	n := 0
	for _, o := range v.Volumes.All() {
		if o.Reading() && o.Source == from {
			n++
		}
	}
	if n >= MostReaders {
		return fmt.Errorf("%w: %s %s/%s has %d read-only and transient volumes, as many as it may have; let pods share a read-only claim, or delete some",
			ErrNoSpace, from.Kind, v.VG.Name, from.LV, n)
	}
	return nil
}
