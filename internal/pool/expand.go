package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// ExpandVolume grows a volume to at least required bytes and at most limit bytes (0 for no
// limit), in whole extents. A volume that is large enough stays as it is. The volume may be
// in use and may have snapshots; snapshots keep their size. When ExpandVolume returns, the
// new extents are in the metadata on the disk and, if the volume is active, in the kernel's
// tables. The wiper first wipes the extents that a block volume gains; until then
// ExpandVolume returns *PendingError.
//
// Errors: ErrNotFound, ErrOutOfRange, ErrNoSpace, ErrPrecondition.
func (p *Pool) ExpandVolume(ctx context.Context, lv string, required, limit size.Bytes) (Volume, error) {
	if limit != 0 && limit < required {
		return Volume{}, fmt.Errorf("%w: the limit %v is below the size %v", ErrOutOfRange, limit, required)
	}
	for {
		wiped := p.wiper.freed()
		vol, err := run(ctx, &p.group, []string{lvKey(lv)}, func(ctx context.Context) (Volume, error) { return p.expand(ctx, lv, required, limit) })
		var wiping *PendingError
		if !errors.As(err, &wiping) || !wiping.wiping {
			return vol, err
		}
		p.wiper.wake()
		select {
		case <-wiped:
		case <-ctx.Done():
			return Volume{}, err
		}
	}
}

func (p *Pool) expand(ctx context.Context, lv string, required, limit size.Bytes) (Volume, error) {
	var wiping *PendingError
	err := p.do(ctx, &change{what: "expand volume " + lv, edit: func(t *edit) error {
		if o, err := t.Usable(lv); err == nil && o.Reading() && required <= t.BytesOf(o.LV) && (limit == 0 || t.BytesOf(o.LV) <= limit) {
			return nil
		}
		o, err := t.Changeable(lv)
		if err != nil {
			return err
		}
		have := o.LV.Size()
		if limit != 0 && t.BytesOf(o.LV) > limit {
			return fmt.Errorf("%w: volume %s/%s already has %v, above the limit %v", ErrOutOfRange, t.VG.Name, lv, t.BytesOf(o.LV), limit)
		}
		want, err := t.ExtentsFor(max(required, 1), limit)
		if err != nil || want <= have {
			return err
		}
		if err := errors.Join(t.Writable(), p.roomForText(t.view())); err != nil {
			return err
		}
		kind, err := t.Kind(o.LV)
		if err != nil {
			return err
		}
		if err := p.checkRoom(t.view(), kind, want-have); err != nil {
			return err
		}
		ranges, unknown, err := p.gain(t, o, kind, want-have)
		if err != nil {
			return err
		}
		if ranges == nil {
			wiping = &PendingError{wiping: true, What: "wiping extents to expand volume " + lv, Total: uint64(size.Bytes(want-have) * t.ExtentSize())}
			return nil // committed: the extents to wipe
		}
		c := o.LV.Clone()
		c.Segments = catalog.AppendExtents(c.Segments, ranges...)
		catalog.SetUnknown(c, o.Unknown.Union(unknown))
		catalog.SetAsked(c, required, size.Bytes(want)*t.ExtentSize())
		return t.Put(c)
	}, act: func(ctx context.Context, v *view) error { return p.settle(ctx, v, lv) }})
	if err != nil {
		return Volume{}, err
	}
	if wiping != nil {
		return Volume{}, wiping
	}
	return p.Volume(ctx, lv)
}

// gain allocates n extents for o on disks of a kind. unknown are the gained extents, as
// extents of the volume, that may hold an earlier owner's bytes. ranges is nil if the
// extents must be wiped first; the edit has then turned them into trash.
func (p *Pool) gain(t *edit, o *catalog.Volume, kind size.Bytes, n lvm2.Extents) (ranges []lvm2.Range, unknown catalog.RangeSet, err error) {
	if ranges, err = t.Growth(o.LV, n, catalog.LowEnd); err != nil {
		return nil, nil, err
	}
	if unknown = catalog.LogicalOutside(t.Clean, o.LV.Size(), ranges); len(unknown) == 0 {
		return ranges, nil, nil
	}
	if o.Mode == Block || t.Unclear == nil && len(catalog.NewRangeSet(ranges...).Intersect(p.cleanable(t.view()))) > 0 {
		t.Free = t.Free.Union(catalog.NewRangeSet(ranges...)) // free these extents again
		// The device may be in use, and must not show unwiped extents even for a moment.
		ranges, err = t.CleanExtents(kind, n)
		return ranges, nil, err
	}
	if err := t.blankEnds(ranges); err != nil {
		return nil, nil, fmt.Errorf("preparing the new extents of volume %s/%s: %w", t.VG.Name, o.LV.Name, err)
	}
	return ranges, unknown, nil
}
