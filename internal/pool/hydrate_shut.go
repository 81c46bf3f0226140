package pool

import (
	"context"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
)

// abandon removes the volume's window. A failed mirror blocks writes. Without the
// window they go to the place that holds the content by the volume's recorded
// position.
func (h *hydrator) abandon(lv string) error {
	return h.exclusive(h.pool.ctx, lv, &change{what: "stop hydrating volume " + lv, act: func(ctx context.Context, v *view) error {
		o := v.VolumeByLV(lv)
		if o == nil {
			return catalog.ErrHydrated
		}
		w := h.window(o.LV.ID)
		if w == nil {
			return nil
		}
		h.setWindow(o.LV.ID, nil)
		err := h.pool.converge(ctx, v, lv)
		if err != nil && o.Forked() && !o.Hydrated.Has(w.Span) { // else the volume may already be written without the window
			h.setWindow(o.LV.ID, w)
		}
		return err
	}})
}
