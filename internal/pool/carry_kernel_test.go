//go:build kernel

package pool

import (
	"context"
	"slices"
)

// carryWindow carries out the plan of a volume's devices up to the end of its window, and
// carryLoaded up to the step before the window.
func carryWindow(ctx context.Context, p *Pool, v *view, lv string) error {
	return carryPart(ctx, p, v, lv, stepResume, 1)
}

func carryLoaded(ctx context.Context, p *Pool, v *view, lv string) error {
	return carryPart(ctx, p, v, lv, stepSuspend, 0)
}

// carryPart carries out a plan up to the first step of a kind for the volume's own
// device, and more steps after it.
func carryPart(ctx context.Context, p *Pool, v *view, lv string, last stepKind, more int) error {
	c := p.convergence(v, lv, demand{})
	k, err := c.look()
	if err != nil {
		return err
	}
	plan, top := c.plan(k), v.topDevice(v.VG.LV(lv))
	if i := slices.IndexFunc(plan, func(s step) bool { return s.do == last && s.uuid == top.uuid }); i >= 0 {
		plan = plan[:i+more]
	}
	return c.carryOut(ctx, plan, k)
}
