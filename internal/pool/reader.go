package pool

import (
	"errors"
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// A reader is a volume that shows a snapshot and never copies it. A read-only reader has no
// extents: for LVM2 it is a logical volume of type error.
//
//	pool-vol      linear    <pool-snapK>, read-only
//
// A transient reader keeps writes in its own extents, and the list of these writes only in the
// kernel's memory (scratch.go).

// reading reports whether v is a reader.
func (v *volume) reading() bool { return v.reads != "" }

// from returns the layer that v reads through; "" if there is none.
func (v *volume) from() lvm2.ID {
	if v.reading() {
		return v.reads
	}
	return v.copyOf
}

// readFrom returns the layer that a reader shows, and the volume of the layer. Errors:
// ErrLost if the layer was removed.
func (v *view) readFrom(o *volume) (*layer, *volume, error) {
	l := v.layers[o.reads]
	if l == nil {
		return nil, nil, fmt.Errorf("volume %s/%s: %w: the layer %s that it shows was removed", v.vg.Name, o.lv.Name, ErrLost, o.reads)
	}
	return l, v.volumes[l.of], v.circular(o)
}

// notAReader returns ErrPrecondition for a reader, in operations that need a volume with
// blocks of its own.
func (v *view) notAReader(o *volume) error {
	switch {
	case !o.reading():
		return nil
	case o.transient:
		return fmt.Errorf("volume %s/%s: %w: it is transient: it does not keep its data, so it has no snapshots or clones, and always its snapshot's size",
			v.vg.Name, o.lv.Name, ErrPrecondition)
	}
	return fmt.Errorf("volume %s/%s: %w: it shows a snapshot read-only; take snapshots and clones of %s %[5]s instead, and restore %[5]s to get a larger volume",
		v.vg.Name, o.lv.Name, ErrPrecondition, o.source.Kind, o.source.LV)
}

// showable returns an error if a volume of n extents cannot be a reader of its source.
func (t *edit) showable(spec VolumeSpec, from original, n lvm2.Extents) error {
	if spec.lentTo != "" {
		return nil // CopyVolume copies the source, and wipes the rest
	}
	if spec.Mode == Block && len(from.unknown) > 0 {
		return fmt.Errorf("%s %s/%s: %w: parts of it were never wiped, so it can only be restored to a writable volume",
			spec.Source.Kind, t.vg.Name, spec.Source.LV, ErrPrecondition)
	}
	if spec.ReadOnly && !from.formatted {
		return fmt.Errorf("%s %s/%s: %w: the volume had no file system yet, so there is nothing to read; restore it to a writable volume, which gets a file system",
			spec.Source.Kind, t.vg.Name, spec.Source.LV, ErrPrecondition)
	}
	if n > t.extents(from.length) {
		return fmt.Errorf("%w: a read-only or transient volume has the size of its source, which is %v, but %v was requested", ErrOutOfRange, from.length, spec.Size)
	}
	return nil
}

// newReader adds a volume of n extents that shows a layer.
func (p *Pool) newReader(t *edit, spec VolumeSpec, n lvm2.Extents, layer lvm2.ID, from original) (lv *lvm2.LV, err error) {
	kind, err := t.kindOf(from.volume)
	if err != nil {
		return nil, err
	}
	var chunk size.Sectors
	if spec.ReadOnly {
		if lv, err = p.blankVolume(t, spec, n); err != nil {
			return nil, err
		}
		lv.Status = []string{lvm2.StatusRead, lvm2.StatusVisible}
		lv.Segments = []lvm2.Segment{{Count: n, Type: lvm2.TypeError}}
	} else {
		if chunk, err = scratchChunk(p.config.Chunk, size.Bytes(n)*t.extent()); err != nil {
			return nil, err
		}
		if lv, err = p.newVolume(t, spec, kind, n, 0); err != nil {
			return nil, err
		}
		// Reads from the extents return only data that the kernel copied from the snapshot.
		setContent(lv, from.formatted, from.unknown)
	}
	show(lv, layer, chunk)
	return lv, t.put(lv)
}

// takesNothing reports whether lv has no extents.
func takesNothing(lv *lvm2.LV) bool {
	return !slices.ContainsFunc(lv.Segments, func(s lvm2.Segment) bool { return s.Type != lvm2.TypeError })
}

// readerHealth returns the conditions of a reader and of the layer that it shows.
func (p *Pool) readerHealth(v *view, o *volume) []Condition {
	l, source, err := v.readFrom(o)
	if err == nil {
		err = p.intact(v, source, l)
	}
	if errors.Is(err, ErrLost) {
		return []Condition{{DataLoss, "SourceLost", fmt.Sprintf("the snapshot that it shows is gone: %v; delete it", err)}}
	}
	if err != nil {
		return []Condition{{Inaccessible, "SourceUnreadable", err.Error()}}
	}
	return append(v.disksOf(source.lv), p.scratchHealth(v, o)...)
}
