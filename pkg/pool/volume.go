package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// defaultSize is what a volume gets when nothing is asked for.
const defaultSize = size.GiB

// Flags of LVs that LVM2 must not activate: frozen layers, unfinished copies, trash.
var handsOff = []string{lvm2.FlagActivationSkip, lvm2.FlagNoAutoActivate}

// CreateVolume makes a volume, or finds the one of that name. The extents are
// the volume's own from then on. Without a source it returns at once; with one
// it waits for the copy, which goes on when ctx ends (*PendingError): a repeated
// call joins it.
//
// Errors: ErrConflict, ErrNoSpace, ErrOutOfRange, ErrInvalid, ErrNotFound (the
// source), ErrLost, ErrPrecondition, ErrUnavailable.
func (p *Pool) CreateVolume(ctx context.Context, spec VolumeSpec) (Volume, error) {
	if err := checkSpec(spec); err != nil {
		return Volume{}, err
	}
	for {
		wiped := p.wiper.freed() // before looking for room, so that nothing is missed
		keys, err := p.sourceKeys(spec)
		if err != nil {
			return Volume{}, err
		}
		lv, err := run(ctx, p, append([]string{nameKey(spec.Name)}, keys...), func(ctx context.Context) (string, error) {
			if spec.Source.Kind == FromNothing {
				return p.createBlank(ctx, spec)
			}
			return p.createFrom(ctx, spec)
		})
		var debt *PendingError
		if errors.As(err, &debt) && debt.wiping {
			select {
			case <-wiped:
				continue
			case <-ctx.Done():
				return Volume{}, err
			}
		}
		if err != nil {
			return Volume{}, err
		}
		if err := p.waitForCopy(ctx, lv); err != nil {
			return Volume{}, err
		}
		return p.Volume(ctx, lv)
	}
}

func checkSpec(s VolumeSpec) error {
	switch {
	case s.Mode != Filesystem && s.Mode != Block:
		return fmt.Errorf("%w: volume mode %q", ErrInvalid, s.Mode)
	case s.Limit != 0 && s.Limit < s.Size:
		return fmt.Errorf("%w: the limit %v is below the size %v", ErrOutOfRange, s.Limit, s.Size)
	case s.ReadOnly && s.Source.Kind == FromNothing:
		return fmt.Errorf("%w: a read-only volume without a source could never hold anything", ErrInvalid)
	}
	return nil
}

// extentsFor returns the volume's size in extents, and at least least.
func (v *view) extentsFor(want, limit, least size.Bytes) (lvm2.Extents, error) {
	if want == 0 {
		want = defaultSize
		if least > 0 {
			want = least
		} else if limit != 0 {
			want = min(want, limit/v.extent()*v.extent())
		}
	}
	if want < least {
		return 0, fmt.Errorf("%w: %v asked for, the source has %v", ErrOutOfRange, want, least)
	}
	n := v.extents(want)
	if n == 0 {
		n = 1
	}
	if got := size.Bytes(n) * v.extent(); limit != 0 && got > limit {
		return 0, fmt.Errorf("%w: in whole extents of %v that is %v, over the limit %v", ErrOutOfRange, v.extent(), got, limit)
	}
	if int64(size.Bytes(n)*v.extent()) < 0 {
		return 0, fmt.Errorf("%w: %v", ErrOutOfRange, want)
	}
	return n, nil
}

// existing finds a volume of spec's name and checks that it is what spec asks for.
func (v *view) existing(spec VolumeSpec) (*volume, error) {
	o := v.named[spec.Name]
	if o == nil {
		return nil, nil
	}
	have := v.bytesOf(o.lv)
	differs := ""
	switch {
	case spec.Size != 0 && (have < spec.Size || have >= spec.Size.RoundUp(v.extent())+v.extent()):
		differs = fmt.Sprintf("has %v, asked for are %v", have, spec.Size)
	case spec.Limit != 0 && have > spec.Limit:
		differs = fmt.Sprintf("has %v, over the limit %v", have, spec.Limit)
	case o.mode != spec.Mode || o.mode == Filesystem && o.fs != spec.FSType:
		differs = fmt.Sprintf("is of mode %s %s", o.mode, o.fs)
	case o.readOnly != spec.ReadOnly:
		differs = fmt.Sprintf("read-only is %v", o.readOnly)
	case o.source != spec.Source:
		differs = fmt.Sprintf("has the source %s %s", o.source.Kind, o.source.LV)
	}
	if differs != "" {
		return nil, fmt.Errorf("%w: volume %q (%s/%s) %s", ErrConflict, spec.Name, v.vg.Name, o.lv.Name, differs)
	}
	return o, nil
}

// createBlank makes an empty volume and returns its LV's name.
func (p *Pool) createBlank(ctx context.Context, spec VolumeSpec) (name string, err error) {
	err = p.do(ctx, &change{what: fmt.Sprintf("create volume %q", spec.Name), edit: func(t *edit) error {
		if o, err := t.existing(spec); err != nil || o != nil {
			if o != nil {
				name = o.lv.Name
			}
			return err
		}
		n, err := t.extentsFor(spec.Size, spec.Limit, 0)
		if err != nil {
			return err
		}
		lv, err := p.newVolume(t, spec, n)
		if err != nil {
			return err
		}
		name = lv.Name
		return t.put(lv)
	}})
	return name, err
}

// newVolume allocates n extents and describes the volume. It does not put it into the group.
func (p *Pool) newVolume(t *edit, spec VolumeSpec, n lvm2.Extents) (*lvm2.LV, error) {
	name, err := t.lvName(spec.Name)
	if err != nil {
		return nil, err
	}
	if err := p.checkRoom(t.view, n); err != nil {
		return nil, err
	}
	ranges, err := t.allocate(n, lowEnd)
	if err != nil {
		return nil, err
	}
	tags := []string{tag(tagRole, roleVolume), tag(tagName, spec.Name), tag(tagMode, string(spec.Mode))}
	if spec.Mode == Filesystem {
		tags = append(tags, tag(tagFS, spec.FSType))
		if spec.Source.Kind == FromNothing {
			tags = append(tags, tag(tagUnformatted))
		}
	}
	if spec.ReadOnly {
		tags = append(tags, tag(tagReadOnly))
	}
	if spec.Source.Kind != FromNothing {
		tags = append(tags, tag(tagSource, string(spec.Source.Kind)+"/"+spec.Source.LV))
	}
	if unknown := logicalOutside(t.clean, 0, ranges); len(unknown) > 0 {
		tags = append(tags, tag(tagUnknown, unknown.String()))
	}
	return &lvm2.LV{
		Name: name, ID: lvm2.NewID(), Status: []string{lvm2.StatusRead, lvm2.StatusWrite, lvm2.StatusVisible}, Tags: tags,
		CreationTime: time.Now(), CreationHost: p.host.Hostname, Segments: appendExtents(nil, ranges...),
	}, nil
}

// checkRoom keeps volumes from taking the extents that layers need to grow.
func (p *Pool) checkRoom(v *view, n lvm2.Extents) error {
	room := p.room(v)
	if n <= room {
		return nil
	}
	var debt lvm2.Extents
	for _, lv := range v.trash {
		debt += lv.Size()
	}
	if n <= room+debt {
		return &PendingError{wiping: true, What: fmt.Sprintf("wiping deleted volumes of volume group %s to make room for %d extents", v.vg.Name, n)}
	}
	return fmt.Errorf("%w: %d extents of %v are needed, volume group %s has room for %d (%d more are kept for snapshots)",
		ErrNoSpace, n, v.extent(), v.vg.Name, room, p.reserve(v))
}

// room is the number of extents that volumes may take.
func (p *Pool) room(v *view) lvm2.Extents {
	free, reserve := newRangeSet(v.vg.Free()...).size(), p.reserve(v)
	if free <= reserve {
		return 0
	}
	return free - reserve
}

// reserve is the number of extents kept for layers.
func (p *Pool) reserve(v *view) lvm2.Extents {
	var total lvm2.Extents
	for _, pv := range v.vg.PVs {
		total += pv.PECount
	}
	return total * lvm2.Extents(p.config.LayerReserve) / 100
}

// DeleteVolume deletes a volume; nil if there is none. Its snapshots outlive
// it: as long as one is there the blocks stay, hidden. ErrInUse if the volume's
// device is open.
func (p *Pool) DeleteVolume(ctx context.Context, lv string) error {
	_, err := run(ctx, p, []string{lvKey(lv)}, func(ctx context.Context) (none struct{}, err error) {
		p.copies.cancel(lv)
		if err := p.waitClosed(ctx, lv); err != nil {
			return none, err
		}
		return none, p.do(ctx, &change{what: "delete volume " + lv, edit: func(t *edit) error {
			o := t.volumeByLV(lv)
			if o == nil || o.deleted {
				return nil
			}
			if o.foreignCow {
				return fmt.Errorf("volume %s/%s: %w: it has snapshots that LVM2 made; remove them first", t.vg.Name, lv, ErrPrecondition)
			}
			// Before the metadata changes, so that a volume in use keeps everything.
			if err := p.down(p.ctx, t.view, o); err != nil {
				return err
			}
			return t.deleteVolume(o)
		}, act: func(context.Context, *view) error {
			p.wiper.wake()
			return nil
		}})
	})
	return err
}

// deleteVolume makes o trash, or hides it while a snapshot needs its blocks.
func (t *edit) deleteVolume(o *volume) error {
	if len(t.needed(o)) == 0 {
		if err := t.discard(append(storesOf(o.layers), o.lv)...); err != nil {
			return err
		}
	} else {
		c := o.lv.Clone()
		c.Tags = append(dropTags(c.Tags, tagName, tagCopy), tag(tagDeleted))
		c.Flags = slices.Clone(handsOff)
		if err := t.put(c); err != nil {
			return err
		}
	}
	return t.prune(t.layers[o.copyOf])
}

func storesOf(layers []*layer) []*lvm2.LV {
	out := make([]*lvm2.LV, len(layers))
	for i, l := range layers {
		out[i] = l.lv
	}
	return out
}

// discard turns LVs into trash: their extents stay allocated until they are wiped.
func (t *edit) discard(lvs ...*lvm2.LV) error {
	for _, lv := range lvs {
		for _, h := range t.vg.LVs {
			if s := snapshotSegment(h); s != nil && s.COWStore == lv.Name {
				if err := t.remove(h.ID); err != nil {
					return err
				}
				break
			}
		}
		c := lv.Clone()
		c.Name = trashPrefix + string(lv.ID)
		c.Tags = []string{tag(tagRole, roleTrash)}
		c.Status = []string{lvm2.StatusRead, lvm2.StatusWrite, lvm2.StatusVisible}
		c.Flags = slices.Clone(handsOff)
		if err := t.put(c); err != nil {
			return err
		}
	}
	return nil
}

// prune throws away the layers of l's history that nobody needs any more now
// that one user of l is gone, and the volume too if it was deleted.
func (t *edit) prune(l *layer) error {
	if l == nil {
		return nil
	}
	now := newView(t.vg, t.view)
	o := now.volumes[l.of]
	if o == nil {
		return nil
	}
	needed := now.needed(o)
	if err := t.discard(storesOf(o.layers[:len(o.layers)-len(needed)])...); err != nil {
		return err
	}
	if len(needed) == 0 && o.deleted {
		return t.discard(o.lv)
	}
	return nil
}

// Volume returns the volume of that LV name; ErrNotFound.
func (p *Pool) Volume(_ context.Context, lv string) (Volume, error) {
	v, err := p.latest()
	if err != nil {
		return Volume{}, err
	}
	o := v.volumeByLV(lv)
	if o == nil || o.deleted {
		return Volume{}, fmt.Errorf("volume %s/%s: %w", p.vgName, lv, ErrNotFound)
	}
	return v.describe(o), nil
}

// Volumes returns the finished volumes, sorted by LV name.
func (p *Pool) Volumes(context.Context) ([]Volume, error) {
	v, err := p.latest()
	if err != nil {
		return nil, err
	}
	var out []Volume
	for _, o := range v.named {
		if o.copyOf == "" {
			out = append(out, v.describe(o))
		}
	}
	slices.SortFunc(out, func(a, b Volume) int { return strings.Compare(a.LV, b.LV) })
	return out, nil
}

func (v *view) describe(o *volume) Volume {
	return Volume{
		Name: o.name, LV: o.lv.Name, Size: v.bytesOf(o.lv), Mode: o.mode, FSType: o.fs, ReadOnly: o.readOnly,
		Source: o.source, Formatted: o.formatted, Copied: o.source.Kind != FromNothing,
	}
}

// Capacity returns the pool's room.
func (p *Pool) Capacity(context.Context) (Capacity, error) {
	v, err := p.latest()
	if err != nil {
		return Capacity{}, err
	}
	var total lvm2.Extents
	for _, pv := range v.vg.PVs {
		total += pv.PECount
	}
	room := size.Bytes(p.room(v)) * v.extent()
	return Capacity{Total: size.Bytes(total) * v.extent(), Free: room, MaxVolume: room}, nil
}
