package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// A reader is a volume that shows a snapshot and never copies it. One for
// readers only has no extents: for LVM2 it is a logical volume of type error.
//
//	pool-vol      linear    <pool-snapK>, read-only
//
// A transient one keeps what is written to it in its own extents, and where that
// is in the kernel's memory only (scratch.go).

// reading says whether o shows a snapshot and never copies it.
func (v *volume) reading() bool { return v.reads != "" }

// from is the layer that o reads through, if it does.
func (v *volume) from() lvm2.ID {
	if v.reading() {
		return v.reads
	}
	return v.copyOf
}

// readFrom finds the layer that a reader shows, and that one's volume.
func (v *view) readFrom(o *volume) (*layer, *volume, error) {
	l := v.layers[o.reads]
	if l == nil {
		return nil, nil, fmt.Errorf("volume %s/%s: %w: the layer %s that it shows was removed", v.vg.Name, o.lv.Name, ErrLost, o.reads)
	}
	return l, v.volumes[l.of], nil
}

// notAReader refuses what only volumes with blocks of their own can do.
func (v *view) notAReader(o *volume) error {
	switch {
	case !o.reading():
		return nil
	case o.transient:
		return fmt.Errorf("volume %s/%s: %w: it is transient: what is written to it is not kept, so it has no snapshots, no clones and always its snapshot's size",
			v.vg.Name, o.lv.Name, ErrPrecondition)
	}
	return fmt.Errorf("volume %s/%s: %w: it shows a snapshot read-only: take snapshots and clones of %s %s instead, and restore that to a larger size",
		v.vg.Name, o.lv.Name, ErrPrecondition, o.source.Kind, o.source.LV)
}

// createReader makes a volume that shows a snapshot, of a volume an internal one
// that is cut for it.
func (p *Pool) createReader(ctx context.Context, spec VolumeSpec) (string, error) {
	var name, cutOf string
	err := p.do(ctx, &change{what: fmt.Sprintf("create volume %q to read %s %s", spec.Name, spec.Source.Kind, spec.Source.LV), edit: func(t *edit) error {
		if o, err := t.existing(spec); err != nil || o != nil {
			if o != nil {
				name = o.lv.Name
			}
			return err
		}
		from, o, err := t.contentOf(spec)
		if err != nil {
			return err
		}
		length, unknown, origin := t.bytesOf(o.lv), o.unknown, lvm2.ID("")
		if from != nil {
			length, unknown, origin = from.length.Bytes(), from.unknown, from.lv.ID
			if err := errors.Join(p.intact(t.view, o, from), p.unmounted(t.view, o, from)); err != nil {
				return err
			}
		}
		if spec.Mode == Block && len(unknown) > 0 {
			return fmt.Errorf("%s %s/%s: %w: parts of it were never wiped, so it can only be restored to a volume that is written",
				spec.Source.Kind, t.vg.Name, spec.Source.LV, ErrPrecondition)
		}
		n, err := t.extentsFor(spec.Size, spec.Limit, length)
		if err != nil {
			return err
		}
		if most := t.extents(length); n > most {
			return fmt.Errorf("%w: a read-only or transient volume has the size of its source, which is %v; %v asked for", ErrOutOfRange, length, spec.Size)
		}
		lv, err := p.newReader(t, spec, n)
		if err != nil {
			return err
		}
		if from == nil {
			cut, err := p.cut(t, o, "")
			if err != nil {
				return err
			}
			origin, cutOf = cut.ID, o.lv.Name
		}
		lv.Tags = append(lv.Tags, tag(tagReads, string(origin)))
		lv.Flags = slices.Clone(handsOff)
		name = lv.Name
		return t.put(lv)
	}, act: func(ctx context.Context, v *view) error {
		if cutOf == "" {
			return nil
		}
		return p.settle(ctx, v, cutOf)
	}})
	return name, err
}

// newReader describes a volume of n extents that shows a snapshot. It does not
// put it into the group.
func (p *Pool) newReader(t *edit, spec VolumeSpec, n lvm2.Extents) (*lvm2.LV, error) {
	if spec.ReadOnly {
		lv, err := p.blankVolume(t, spec)
		if err != nil {
			return nil, err
		}
		lv.Status = []string{lvm2.StatusRead, lvm2.StatusVisible}
		lv.Segments = []lvm2.Segment{{Count: n, Type: lvm2.TypeError}}
		return lv, nil
	}
	chunk, err := scratchChunk(p.config.Chunk, size.Bytes(n)*t.extent())
	if err != nil {
		return nil, err
	}
	lv, err := p.newVolume(t, spec, n, 0)
	if err != nil {
		return nil, err
	}
	// Only what was copied from the snapshot is ever read from the extents.
	lv.Tags = append(dropTags(lv.Tags, tagUnknown), tag(tagTransient), tag(tagChunk, strconv.FormatUint(uint64(chunk), 10)))
	return lv, nil
}

// takesNothing says whether lv has no extents of its own.
func takesNothing(lv *lvm2.LV) bool {
	return !slices.ContainsFunc(lv.Segments, func(s lvm2.Segment) bool { return s.Type != lvm2.TypeError })
}

// readerUp makes the device of a reader, whose state now is top; nil if there
// is none. One that is in use stays as it is if its content is lost: reading it
// fails.
func (p *Pool) readerUp(ctx context.Context, v *view, o *volume, top *dm.Info) error {
	active := top != nil && top.Live
	l, source, err := v.readFrom(o)
	if err == nil && active && source.theirs() != "" {
		return nil
	}
	if err == nil {
		_, err = p.chainUp(ctx, v, source, l)
	}
	if err == nil {
		if err = p.intact(v, source, l); err != nil && !active {
			err = errors.Join(err, p.chainDown(ctx, v, source))
		}
	}
	if active && errors.Is(err, ErrLost) {
		return nil
	}
	if err != nil {
		return err
	}
	below, err := p.find(p.device(v, l.lv, "", udevSnapshot))
	if err != nil {
		return err
	}
	if o.transient {
		if err = p.scratchUp(ctx, v, o, below.Device, top); err != nil && top == nil {
			err = errors.Join(err, p.down(ctx, v, o))
		}
		return err
	}
	vol := p.device(v, o.lv, "", udevVisible)
	dev, pending, err := p.ensureFrom(top, vol, whole(l.length, dm.Linear{Device: below.Device}), true)
	if err != nil {
		return err
	}
	switch {
	case pending && active:
		err = p.swap(ctx, vol, top.Suspended, dm.SuspendOptions{SkipLockFS: true}, func() error { return nil })
	case pending:
		err = p.dm.Resume(vol.name, vol.udev)
	}
	if err != nil {
		return err
	}
	return p.node(ctx, vol, dev)
}

// readerDown removes what was below the device of a reader.
func (p *Pool) readerDown(ctx context.Context, v *view, o *volume) error {
	if err := p.takeDown(ctx, p.device(v, o.lv, layerCOW, udevCOW)); err != nil {
		return err
	}
	if l := v.layers[o.reads]; l != nil {
		return p.chainDown(ctx, v, v.volumes[l.of])
	}
	return nil
}

// readerHealth returns what is wrong with what a reader shows.
func (p *Pool) readerHealth(v *view, o *volume) []Condition {
	l, source, err := v.readFrom(o)
	if err == nil {
		err = p.intact(v, source, l)
	}
	if errors.Is(err, ErrLost) {
		return []Condition{{DataLoss, "SourceLost", fmt.Sprintf("what it shows is gone: %v; delete it", err)}}
	}
	if err != nil {
		return []Condition{{Inaccessible, "SourceUnreadable", err.Error()}}
	}
	return append(v.disksOf(source.lv), p.scratchHealth(v, o)...)
}
