package pool

import (
	"context"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// trimmable returns a frozen layer of o whose store's unused end can be given back,
// or nil. If the layer is being read, its device in the kernel must be read-only
// too.
func (p *Pool) trimmable(v *view, o *catalog.Volume) *catalog.Layer {
	for _, l := range o.Layers {
		if p.canTrim(v, l) {
			return l
		}
	}
	return nil
}

func (p *Pool) canTrim(v *view, l *catalog.Layer) bool {
	if v.Unclear != nil || !l.Untrimmed() || !catalog.Linear(l.LV) {
		return false
	}
	info, err := p.find(v.snapDevice(l.LV))
	return err == nil && (info == nil || info.Live && info.ReadOnly)
}

// trim gives back the unused ends of a volume's frozen stores, so that a snapshot
// takes only the space of the changed chunks. Nothing writes to a frozen store, so
// its usage is final.
func (p *Pool) trim(ctx context.Context, lv string) error {
	for {
		v, err := p.latest()
		if err != nil {
			return err
		}
		o := v.VolumeByLV(lv)
		if o == nil {
			return nil
		}
		l := p.trimmable(v, o)
		if l == nil {
			return nil
		}
		if err := p.trimLayer(ctx, v, l); err != nil {
			return fmt.Errorf("trimming the store of %s/%s: %w", v.VG.Name, l.LV.Name, err)
		}
	}
}

func (p *Pool) trimLayer(ctx context.Context, v *view, l *catalog.Layer) error {
	var used size.Sectors
	err := readFrozen(v, l, func(s *cow.Store) (err error) { used, err = s.Used(ctx); return err })
	if storeLost(err) {
		return p.record(ctx, &unrecordedLoss{l.LV.ID, v})
	}
	if err != nil {
		return err
	}
	return p.do(ctx, &change{what: "give back the end of the store of " + l.LV.Name, edit: func(t *edit) error {
		now := t.Layers.Get(l.LV.ID)
		if now == nil || now.Snap != nil || !catalog.SameExtents(v.VG, l.LV, t.VG, now.LV) {
			return nil // another change came first
		}
		if err := t.ShrinkStore(now.LV, used); err != nil {
			return err
		}
		return p.setBoundary(t, l.LV.ID)
	}, act: func(ctx context.Context, v *view) error {
		p.forgetBoundaries()
		now, o := v.Layers.Get(l.LV.ID), v.Volumes.Get(l.Of)
		if now == nil || o == nil {
			return nil
		}
		if read, err := p.find(v.cowDevice(now.LV)); err != nil || read == nil {
			return err
		}
		// The kernel reads a frozen store's lists once, and afterwards only the
		// chunks that they list.
		return p.converge(ctx, v, o.LV.Name)
	}})
}
