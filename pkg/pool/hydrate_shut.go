package pool

import (
	"context"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// abandon goes back to a volume without a window. A mirror that failed holds
// writes: they go where the volume's position says that its content is.
func (h *hydrator) abandon(lv string) error {
	p := h.pool
	return h.exclusive(p.ctx, lv, &change{what: "stop hydrating volume " + lv, act: func(ctx context.Context, v *view) error {
		o := v.volumeByLV(lv)
		if o == nil {
			return errHydrated
		}
		w := h.window(o.lv.ID)
		if w == nil {
			return nil
		}
		if err := h.shut(ctx, v, o, w); err != nil {
			return err
		}
		h.setWindow(o.lv.ID, nil)
		if err := p.rebase(ctx, v, o, nothing); err != nil {
			h.setWindow(o.lv.ID, w)
			return err
		}
		if !o.forked() { // the last commit had failed for us only
			return p.forkDown(ctx, v, o)
		}
		if p.heldStill(v, o) { // the table that is not in use any more may have it
			return nil
		}
		return p.takeDown(ctx, v.device(o.lv, w.layer, udevReal))
	}})
}

// shut makes a window's device lead to where the volume's content is, without a
// mirror: to the fork or, if the position is behind the window already, to the
// volume's own blocks.
func (h *hydrator) shut(ctx context.Context, v *view, o *volume, w *window) error {
	p := h.pool
	d := v.device(o.lv, w.layer, udevReal)
	info, err := p.find(d)
	if err != nil || info == nil {
		return err
	}
	var to dm.Table
	if o.forked() && !o.hydrated.has(w.span) {
		fork, err := p.find(v.forkDevice(o.lv))
		if err != nil || fork == nil {
			return err
		}
		to = whole(w.length, dm.Linear{Device: fork.Device, Offset: w.start})
	} else {
		own, err := v.linearTable(o.lv)
		if err != nil {
			return err
		}
		for _, s := range cutTable(own, w.start, w.end()) {
			s.Start -= w.start
			to = append(to, s)
		}
	}
	if _, _, err := p.ensureFrom(info, d, to, false); err != nil {
		return err
	}
	return p.swap(ctx, d, info.Suspended, dm.SuspendOptions{SkipLockFS: true, NoFlush: true}, func() error { return nil })
}

// shutLeft does that for windows that a former process left. Their mirrors may
// hold writes since a disk failed: nothing above them could be suspended.
func (h *hydrator) shutLeft(ctx context.Context, v *view, o *volume) error {
	p := h.pool
	for _, layer := range []string{layerWindow0, layerWindow1} {
		info, err := p.find(v.device(o.lv, layer, udevReal))
		if err != nil {
			return err
		}
		if info == nil || !info.Live {
			continue
		}
		table, err := p.dm.Table(info.Name)
		if err != nil {
			return err
		}
		if len(table) != 1 {
			continue
		}
		if m, is := table[0].Target.(dm.Mirror); is && len(m.Legs) == 2 {
			if err := h.shut(ctx, v, o, &window{layer, span{m.Legs[0].Offset, table.Length()}}); err != nil {
				return err
			}
		}
	}
	return nil
}
