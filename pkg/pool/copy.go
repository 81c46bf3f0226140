package pool

import (
	"context"
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// createFrom makes a volume with the content of a snapshot or another volume.
// The volume is in the metadata at once, marked unfinished, and names the layer
// that its content is copied from; a clone cuts an internal layer of its source.
func (p *Pool) createFrom(ctx context.Context, spec VolumeSpec) (string, error) {
	var name string
	var made bool
	var cutOf string
	if spec.Source.Kind == FromVolume {
		p.syncBefore(ctx, spec.Source.LV)
	}
	err := p.do(ctx, &change{what: fmt.Sprintf("create volume %q from %s %s", spec.Name, spec.Source.Kind, spec.Source.LV), edit: func(t *edit) error {
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
		least := t.bytesOf(o.lv)
		if from != nil {
			least = from.length.Bytes()
		}
		n, err := t.extentsFor(spec.Size, spec.Limit, least)
		if err != nil {
			return err
		}
		lv, err := p.newVolume(t, spec, n)
		if err != nil {
			return err
		}
		if err := t.put(lv); err != nil {
			return err
		}
		layerID := lvm2.ID("")
		if from != nil {
			layerID = from.lv.ID
		} else {
			cut, err := p.cut(t, o, "")
			if err != nil {
				return err
			}
			layerID, cutOf = cut.ID, o.lv.Name
		}
		c := lv.Clone()
		c.Tags = setTag(c.Tags, tagCopy, string(layerID))
		c.Flags = slices.Clone(handsOff)
		name, made = lv.Name, true
		return t.put(c)
	}, act: func(ctx context.Context, v *view) error {
		if cutOf == "" {
			return nil
		}
		return p.settle(ctx, v, cutOf)
	}})
	if err != nil {
		return "", err
	}
	if made {
		p.copies.start(name)
	}
	return name, nil
}

// sourceKeys are the keys of the volume whose history spec's source is in.
func (p *Pool) sourceKeys(spec VolumeSpec) ([]string, error) {
	switch spec.Source.Kind {
	case FromNothing:
		return nil, nil
	case FromVolume:
		return []string{lvKey(spec.Source.LV)}, nil
	}
	v, err := p.latest()
	if err != nil {
		return nil, err
	}
	if l := v.snapshotByLV(spec.Source.LV); l != nil {
		return []string{lvKey(v.volumes[l.of].lv.Name)}, nil
	}
	return nil, nil // a repeated call may find the volume though its source is gone
}

// contentOf finds what spec's source is: a layer, or a volume of which a layer
// must be cut.
func (v *view) contentOf(spec VolumeSpec) (*layer, *volume, error) {
	var l *layer
	var o *volume
	var err error
	unknown := false
	if spec.Source.Kind == FromSnapshot {
		if l = v.snapshotByLV(spec.Source.LV); l == nil {
			return nil, nil, fmt.Errorf("snapshot %s/%s: %w", v.vg.Name, spec.Source.LV, ErrNotFound)
		}
		o = v.volumes[l.of]
		if why := o.theirs(); why != "" {
			return nil, nil, fmt.Errorf("snapshot %s/%s: %w: of its volume %s: %s", v.vg.Name, l.lv.Name, ErrPrecondition, o.lv.Name, why)
		}
		if v.describeSnapshot(l).Lost {
			return nil, nil, fmt.Errorf("snapshot %s/%s: %w", v.vg.Name, l.lv.Name, ErrLost)
		}
		unknown = len(l.unknown) > 0
	} else {
		if o, err = v.changeable(spec.Source.LV); err != nil {
			return nil, nil, err
		}
		unknown = len(o.unknown) > 0
	}
	if spec.Mode == Filesystem && o.mode == Filesystem && spec.FSType != o.fs {
		return nil, nil, fmt.Errorf("%w: file system %s asked for, the source's is %s", ErrInvalid, spec.FSType, o.fs)
	}
	if spec.Mode == Block && o.mode == Filesystem && unknown {
		// Below the file system lie blocks that it never wrote: as a raw
		// device they would show what an earlier owner of the extents left.
		return nil, nil, fmt.Errorf("volume %s/%s: %w: it was made on extents that were never wiped, so it cannot become a raw block volume",
			v.vg.Name, o.lv.Name, ErrPrecondition)
	}
	return l, o, nil
}
