package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// failed takes note of the failure of a step; an error if no other plan can do better.
func (c *convergence) failed(ctx context.Context, err error) error {
	var at *stepError
	switch {
	case ctx.Err() != nil, errors.Is(err, errLeft), !errors.As(err, &at):
		return err
	case at.do == stepRemove && errors.Is(err, ErrInUse) && !c.askedDown(at): // it is in use now
		if at.of != nil { // who has it open may only look in passing
			c.refusedAt[at.of.lv.ID] = true
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
	case at.of == nil || c.stuck[at.of.lv.ID] != nil:
		return err
	}
	c.stuck[at.of.lv.ID] = fmt.Errorf("volume %s/%s: %w", c.view.vg.Name, at.of.lv.Name, err)
	return nil
}

// freeName has deleted volumes and layers go, or give their names away.
func (c *convergence) freeName(ctx context.Context) {
	if err := c.sweep(ctx, c.view); err != nil {
		c.log.Error(err, "Removing devices of deleted volumes; it is tried again")
	}
}

// askedDown says whether a step is about the device that a volume is to lose.
func (c *convergence) askedDown(s *stepError) bool {
	return s.of != nil && s.of.lv.ID == c.asked.down && s.uuid == c.view.topDevice(s.of.lv).uuid
}

// letUsersGo lets the users of the volumes go on after the convergence ended early,
// whatever became of the rest: they would wait until another convergence comes to its
// end, which may be never. A cut that holds a volume still ends that itself.
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

// letUsersGo returns the steps without which users of a volume may wait for ever.
func (w *wantedSet) letUsersGo(o *volume, k kernel) []step {
	p := &planner{wantedSet: w, k: maps.Clone(k), ran: map[string]bool{}}
	p.shutWindows(o)
	p.letTopsGo([]*volume{o})
	return p.steps
}

// leftBehind says why devices of volumes stay as they are though they should follow: of
// those that were to be looked after before, and of those whose live layer is not in the
// kernel. A device that is lost, copied or written at this moment need not follow.
func (c *convergence) leftBehind(before map[lvm2.ID]bool) map[lvm2.ID]error {
	out := map[lvm2.ID]error{}
	for _, o := range c.members {
		top := c.kernel[c.view.topDevice(o.lv).uuid]
		ahead := o.live() != nil && !o.live().lost && top != nil && top.Live && !o.reading() && c.kernel[c.view.snapDevice(o.live().lv).uuid] == nil
		if o.odd == nil && (before[o.lv.ID] || ahead) {
			if why := c.staysAs(o); why != nil {
				out[o.lv.ID] = why
			}
		}
	}
	return out
}

// staysAs says why devices of a volume that is in use stay as they are; nil if none does
// that has to follow.
func (c *convergence) staysAs(o *volume) (why error) {
	used := false
	for _, lv := range o.parts() {
		for _, layer := range allLayers {
			uuid := lvm2.DMUUID(c.view.vg.ID, lv.ID, layer)
			used = used || c.kernel[uuid] != nil
			passing := o.copying != nil && uuid == c.view.realDevice(o.lv).uuid || slices.ContainsFunc(o.flats, func(f *flat) bool { return f.lv == lv })
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
