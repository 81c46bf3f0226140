package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// held returns why the writers of lv are held because its store cannot grow;
// nil if they are not.
func (h *hydrator) held(lv string) *growth {
	v := h.pool.current.Load()
	o := v.volumeByLV(lv)
	if o == nil || o.fork == nil {
		return nil
	}
	if g, held := h.pool.holding.Load(o.lv.ID); held && g.(*growth).store == o.fork.lv.ID {
		return g.(*growth)
	}
	return nil
}

// finish hydrates the rest of a volume whose writers are held. Nobody writes, so
// no window is needed in its table; nor may anybody begin to, so no other
// operation on the volume runs meanwhile.
func (h *hydrator) finish(ctx context.Context, lv string, why *growth) error {
	p := h.pool
	_, err := run(ctx, p, []string{lvKey(lv)}, func(_ context.Context) (none struct{}, err error) {
		err = h.finishHeld(ctx, lv, why)
		if err != nil && !errors.Is(err, errHydrated) && p.ctx.Err() == nil {
			err = errors.Join(err, p.do(p.ctx, &change{what: "stop hydrating volume " + lv + ", whose writers are held", act: func(ctx context.Context, v *view) error {
				o := v.volumeByLV(lv)
				if o == nil {
					return nil
				}
				// The volume stays held, with the table that it has.
				h.setWindow(o.lv.ID, nil)
				return p.takeDown(ctx, p.device(v, o.lv, h.freeLayer(v, o), udevReal))
			}}))
		}
		return none, err
	})
	return err
}

func (h *hydrator) finishHeld(ctx context.Context, lv string, why *growth) error {
	p := h.pool
	var from, end size.Sectors
	var volume lvm2.ID
	var layer string
	err := p.do(ctx, &change{what: "hydrate volume " + lv + ", whose writers are held", act: func(ctx context.Context, v *view) error {
		o, l, _, err := v.forkOf(lv)
		if err != nil {
			return err
		}
		if err := p.suspend(ctx, p.device(v, o.lv, "", udevVisible)); err != nil && !errors.Is(err, dm.ErrNotFound) {
			return err
		}
		if w := h.window(o.lv.ID); w != nil { // the volume's table has it
			if err := h.shut(ctx, v, o, w); err != nil {
				return err
			}
			h.setWindow(o.lv.ID, nil)
		}
		layer = h.freeLayer(v, o)
		volume, from, end = o.lv.ID, o.hydrated, l.length
		return nil
	}})
	if err != nil {
		return err
	}
	for at := from; ; {
		w := &window{layer: layer, start: at}
		if err := p.do(ctx, h.copyHeld(lv, w)); err != nil {
			return err
		}
		if err := h.await(ctx, lv, w); err != nil {
			return err
		}
		if h.held(lv) != why {
			return fmt.Errorf("volume %s: its writers are not held any more", lv)
		}
		if at = w.end(); at < end {
			if err := p.do(ctx, &change{what: "hydrate volume " + lv, act: func(ctx context.Context, v *view) error {
				o, _, _, err := v.forkOf(lv)
				if err != nil {
					return err
				}
				return p.takeDown(ctx, p.device(v, o.lv, w.layer, udevReal))
			}}); err != nil {
				return err
			}
			continue
		}
		// Only now: the volume's table is that of the last position on the disk.
		rest := &window{layer: w.layer, start: from, length: end - from}
		h.setWindow(volume, rest)
		return p.do(ctx, h.advance(lv, rest))
	}
}

// freeLayer returns the layer of a window's device that the volume's table has not.
func (h *hydrator) freeLayer(v *view, o *volume) string {
	if info, err := h.pool.find(h.pool.device(v, o.lv, layerWindow0, udevReal)); err == nil && info != nil && info.OpenCount > 0 {
		return layerWindow1
	}
	return layerWindow0
}

// copyHeld begins to copy a part of a volume that nobody writes to.
func (h *hydrator) copyHeld(lv string, w *window) *change {
	p := h.pool
	return &change{what: "hydrate volume " + lv, act: func(ctx context.Context, v *view) error {
		o, l, _, err := v.forkOf(lv)
		if err != nil {
			return err
		}
		top, err := p.find(p.device(v, o.lv, "", udevVisible))
		if err != nil {
			return err
		}
		if top != nil && !top.Suspended {
			return fmt.Errorf("volume %s/%s: its writers are not held any more", v.vg.Name, lv)
		}
		d, err := h.prepare(ctx, v, o, l, w, idleWindow.Sectors())
		if err != nil {
			return err
		}
		return p.dm.Resume(d.name, d.udev)
	}}
}
