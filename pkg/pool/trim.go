package pool

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// trimmable returns a frozen layer of o whose store's unused end can be given
// back, or nil. One that somebody reads is frozen in the kernel, too, once its device is read-only.
func (p *Pool) trimmable(v *view, o *volume) *layer {
	if v.unclear != nil {
		return nil
	}
	for _, l := range o.layers {
		if l.snap != nil || l.lost || l.trimmed || !linear(l.lv) {
			continue
		}
		if info, err := p.find(v.snapDevice(l.lv)); err == nil && (info == nil || info.Live && info.ReadOnly) {
			return l
		}
	}
	return nil
}

// trim gives back the unused ends of a volume's frozen stores: a snapshot costs
// what changed. Nothing writes to a frozen store, so what it uses now it will
// always use.
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
		if err := p.trimLayer(ctx, l.of, l.lv); err != nil {
			return fmt.Errorf("trimming the store of %s/%s: %w", v.vg.Name, l.lv.Name, err)
		}
	}
}

// trimming is a frozen layer's store whose unused end is given back.
type trimming struct {
	group *lvm2.VG // the generation in which the store was read
	dev   device
	read  bool // by somebody: then its device stays
}

// closeTrimming takes down the store's device if nobody but us has it.
func (p *Pool) closeTrimming(ctx context.Context, s *trimming) error {
	if s.read || s.dev.name == "" {
		return nil
	}
	return p.takeDown(ctx, s.dev)
}

// usedOf reads how much of a frozen layer's store is in use. The store's device
// stays, unless there is an error.
func (p *Pool) usedOf(ctx context.Context, lv *lvm2.LV) (s *trimming, used size.Sectors, err error) {
	s = &trimming{}
	var store *cow.Store
	err = p.do(ctx, &change{what: "look at the store of " + lv.Name, act: func(ctx context.Context, v *view) error {
		s.group, s.dev = v.vg, v.cowDevice(lv)
		snap, err := p.find(v.snapDevice(lv))
		if err != nil {
			return err
		}
		s.read = snap != nil
		made, err := p.mapStore(ctx, v, lv, false)
		if err == nil {
			err = p.node(ctx, s.dev, made)
		}
		if err == nil {
			store, err = cow.Open(p.dm.Node(s.dev.name))
		}
		return err
	}})
	if err == nil {
		used, err = store.Used(ctx)
		err = errors.Join(err, store.Close())
	}
	if err != nil {
		err = errors.Join(err, p.closeTrimming(ctx, s))
	}
	return s, used, err
}

func (p *Pool) trimLayer(ctx context.Context, of lvm2.ID, lv *lvm2.LV) (err error) {
	s, used, err := p.usedOf(ctx, lv)
	if errors.Is(err, cow.ErrInvalid) { // given up by the kernel, unnoticed until now
		return p.record(ctx, &unrecordedLoss{lv.ID})
	}
	if err != nil {
		return err
	}
	defer func() {
		if p.ctx.Err() != nil { // nothing is committed any more, but nothing need be left behind
			err = errors.Join(err, p.closeTrimming(context.WithoutCancel(ctx), s))
		}
	}()
	return p.do(ctx, &change{what: "give back the end of the store of " + lv.Name, edit: func(t *edit) error {
		if err := p.closeTrimming(p.ctx, s); err != nil {
			return err
		}
		now := t.vg.LVByID(lv.ID)
		if l := t.layers[lv.ID]; now == nil || l == nil || l.snap != nil || !sameExtents(s.group, lv, t.vg, now) {
			return nil // somebody else changed it
		}
		if err := t.shrinkStore(now, used); err != nil {
			return err
		}
		return p.setBoundary(t, lv.ID)
	}, act: func(ctx context.Context, v *view) error {
		p.forgetBoundaries()
		now := v.vg.LVByID(lv.ID)
		if !s.read || now == nil {
			return nil
		}
		// The kernel reads a frozen store's lists once, and then what they name.
		_, err := p.mapStore(ctx, v, now, false)
		if err != nil {
			p.facts.unsettled.put(of, true)
		}
		return err
	}})
}

// shrinkStore shortens a frozen layer's store to what it uses. The rest becomes
// trash: a power cut may have left copies there that are not in use.
func (t *edit) shrinkStore(lv *lvm2.LV, used size.Sectors) error {
	keep := t.extents(used.Bytes())
	if length := lv.Size(); keep < length {
		trash := newLV("", roleTrash)
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
		lv.Tags = setTag(lv.Tags, tagUsed, strconv.FormatUint(uint64(used), 10))
		if err := t.put(lv); err != nil {
			return err
		}
		return t.put(trash)
	}
	lv = lv.Clone()
	lv.Tags = setTag(lv.Tags, tagUsed, strconv.FormatUint(uint64(used), 10))
	return t.put(lv)
}
