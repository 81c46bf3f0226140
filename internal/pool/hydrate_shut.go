package pool

import "context"

// abandon removes the volume's window. A failed mirror blocks writes. Without the
// window they go to the place that holds the content by the volume's recorded
// position.
func (h *hydrator) abandon(lv string) error {
	return h.exclusive(h.pool.ctx, lv, &change{what: "stop hydrating volume " + lv, act: func(ctx context.Context, v *view) error {
		o := v.volumeByLV(lv)
		if o == nil {
			return errHydrated
		}
		w := h.window(o.lv.ID)
		if w == nil {
			return nil
		}
		h.setWindow(o.lv.ID, nil)
		err := h.pool.converge(ctx, v, lv)
		if err != nil && o.forked() && !o.hydrated.has(w.span) { // else the volume may already be written without the window
			h.setWindow(o.lv.ID, w)
		}
		return err
	}})
}
