package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// trimmable returns a frozen layer of o whose store's unused end can be given back,
// or nil. If the layer is being read, its device in the kernel must be read-only
// too.
func (p *Pool) trimmable(v *view, o *volume) *layer {
	for _, l := range o.layers {
		if p.canTrim(v, l) {
			return l
		}
	}
	return nil
}

func (p *Pool) canTrim(v *view, l *layer) bool {
	if v.unclear != nil || !l.untrimmed() || !linear(l.lv) {
		return false
	}
	info, err := p.find(v.snapDevice(l.lv))
	return err == nil && (info == nil || info.Live && info.ReadOnly)
}

// untrimmed reports whether the store of a layer is frozen, and still has the
// length that it grew to.
func (l *layer) untrimmed() bool { return l.snap == nil && !l.lost && !l.trimmed }

// trim gives back the unused ends of a volume's frozen stores, so that a snapshot
// takes only the space of the changed chunks. Nothing writes to a frozen store, so
// its usage is final.
func (p *Pool) trim(ctx context.Context, lv string) error {
	for {
		v, err := p.latest()
		if err != nil {
			return err
		}
		o := v.volumeByLV(lv)
		if o == nil {
			return nil
		}
		l := p.trimmable(v, o)
		if l == nil {
			return nil
		}
		if err := p.trimLayer(ctx, v, l); err != nil {
			return fmt.Errorf("trimming the store of %s/%s: %w", v.vg.Name, l.lv.Name, err)
		}
	}
}

func (p *Pool) trimLayer(ctx context.Context, v *view, l *layer) error {
	var used size.Sectors
	err := readFrozen(v, l, func(s *cow.Store) (err error) { used, err = s.Used(ctx); return err })
	if errors.Is(err, cow.ErrInvalid) { // the kernel dropped the store, and nobody noticed until now
		return p.record(ctx, &unrecordedLoss{l.lv.ID, v})
	}
	if err != nil {
		return err
	}
	return p.do(ctx, &change{what: "give back the end of the store of " + l.lv.Name, edit: func(t *edit) error {
		now := t.layers[l.lv.ID]
		if now == nil || now.snap != nil || !sameExtents(v.vg, l.lv, t.vg, now.lv) {
			return nil // another change came first
		}
		if err := t.shrinkStore(now.lv, used); err != nil {
			return err
		}
		return p.setBoundary(t, l.lv.ID)
	}, act: func(ctx context.Context, v *view) error {
		p.forgetBoundaries()
		now, o := v.layers[l.lv.ID], v.volumes[l.of]
		if now == nil || o == nil {
			return nil
		}
		if read, err := p.find(v.cowDevice(now.lv)); err != nil || read == nil {
			return err
		}
		// The kernel reads a frozen store's lists once, and afterwards only the
		// chunks that they list.
		return p.converge(ctx, v, o.lv.Name)
	}})
}

// shrinkStore shortens a frozen layer's store to its used part. The rest becomes
// trash, because a power cut may have left copies there that the store does not
// list.
func (t *edit) shrinkStore(lv *lvm2.LV, used size.Sectors) error {
	keep := t.extents(used.Bytes())
	if length := lv.Size(); keep < length {
		trash := newTrash()
		end, err := physicalOf(lv, rangeSet{{Start: keep, Count: length - keep}})
		if err != nil {
			return err
		}
		rest, err := physicalOf(lv, rangeSet{{Start: 0, Count: keep}})
		if err != nil {
			return err
		}
		trash.Segments = appendExtents(nil, end...)
		lv = lv.Clone()
		lv.Segments = appendExtents(nil, rest...)
		lv.Tags = setTag(lv.Tags, tagUsed, number(used))
		if err := t.put(lv); err != nil {
			return err
		}
		return t.put(trash)
	}
	return t.setUsed(lv, used)
}
