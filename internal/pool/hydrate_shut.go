package pool

import "context"

// abandon goes back to a volume without a window. A mirror that failed holds
// writes: they go where the volume's position says that its content is.
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
		if err != nil && o.forked() && !o.hydrated.has(w.span) { // else the volume may be written past it already
			h.setWindow(o.lv.ID, w)
		}
		return err
	}})
}
