package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// failed records the failure of a step. It returns an error if another plan cannot help.
func (c *convergence) failed(ctx context.Context, err error) error {
	var at *stepError
	switch {
	case ctx.Err() != nil, errors.Is(err, errLeft), !errors.As(err, &at):
		return err
	case at.do == stepRemove && errors.Is(err, ErrInUse) && !c.askedDown(at): // it was opened in the meantime
		if at.of != nil { // perhaps only for a moment, as by a scan
			c.refusedAt[at.of.LV.ID] = true
		}
		return nil
	case (errors.Is(err, dm.ErrExists) || errors.Is(err, dm.ErrNotFound)) && !c.again[at.uuid]:
		c.again[at.uuid] = true
		if errors.Is(err, dm.ErrExists) {
			c.freeName(ctx)
		}
		return nil
	case at.of == nil && c.strays[at.uuid] == nil:
		c.strays[at.uuid] = err
		return nil
	case at.of == nil || c.stuck[at.of.LV.ID] != nil:
		return err
	}
	c.stuck[at.of.LV.ID] = fmt.Errorf("volume %s/%s: %w", c.view.VG.Name, at.of.LV.Name, err)
	return nil
}

// freeName removes or renames devices of deleted volumes and layers.
func (c *convergence) freeName(ctx context.Context) {
	if err := c.sweep(ctx, c.view); err != nil {
		c.log.Error(err, "Failed to remove devices of deleted volumes; it will be retried")
	}
}

// askedDown reports whether a step is about the device that the operation wants removed.
func (c *convergence) askedDown(s *stepError) bool {
	return s.of != nil && s.of.LV.ID == c.asked.down && s.uuid == c.view.topDevice(s.of.LV).uuid
}

// letUsersGo resumes the top devices of the volumes after a convergence ended early.
// Otherwise their users would wait for the next successful convergence, which may never
// come. Volumes that are frozen for a cut are left to the cut.
func (c *convergence) letUsersGo(ctx context.Context) error {
	k, err := c.look()
	if err != nil {
		return err
	}
	r := c.running(k)
	r.stuck, r.strays = nil, nil
	w := c.view.want(c.members, use{}, r, k)
	var errs []error
	for _, o := range c.members {
		if c.frozenOf(o) == nil {
			errs = append(errs, c.carryOut(ctx, w.letUsersGo(o, k), k))
		}
	}
	return errors.Join(errs...)
}

// letUsersGo returns the steps without which users of a volume might wait for ever.
func (w *wantedSet) letUsersGo(o *catalog.Volume, k kernel) []step {
	p := &planner{wantedSet: w, k: maps.Clone(k), ran: map[string]bool{}}
	p.shutWindows(o)
	p.letTopsGo([]*catalog.Volume{o})
	return p.steps
}

// leftBehind returns the reasons why devices of volumes do not match the view. It checks
// the volumes in before, and volumes whose live layer is not in the kernel. It ignores
// devices that are lost, or that are being copied or written at the moment.
func (c *convergence) leftBehind(before map[lvm2.ID]bool) map[lvm2.ID]error {
	out := map[lvm2.ID]error{}
	for _, o := range c.members {
		top := c.kernel[c.view.topDevice(o.LV).uuid]
		ahead := o.Live() != nil && !o.Live().Lost && top != nil && top.Live && !o.Reading() && c.kernel[c.view.snapDevice(o.Live().LV).uuid] == nil
		if o.Odd == nil && (before[o.LV.ID] || ahead) {
			if why := c.staysAs(o); why != nil {
				out[o.LV.ID] = why
			}
		}
	}
	return out
}

// staysAs returns the reason why a device of a volume in use does not match the view; nil
// if every device does that has to.
func (c *convergence) staysAs(o *catalog.Volume) (why error) {
	used := false
	for _, lv := range o.Parts() {
		for _, layer := range allLayers {
			uuid := lvm2.DMUUID(c.view.VG.ID, lv.ID, layer)
			used = used || c.kernel[uuid] != nil
			passing := o.Copying != nil && uuid == c.view.realDevice(o.LV).uuid || slices.ContainsFunc(o.Flats, func(f *catalog.Flat) bool { return f.LV == lv })
			if err := c.want.kept[uuid]; err != nil && !passing && !errors.Is(err, ErrLost) {
				why = cmp.Or(why, err)
			}
		}
	}
	if !used {
		return nil
	}
	return why
}
