package pool

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
)

// lockedFreeze bounds how long LVM2's lock is held during the freeze for a cut. Most freezes end
// within this time. The window then needs no lock of its own, whose waiting would hold the volume.
const lockedFreeze = 250 * time.Millisecond

// cutting is a cut of a volume in use.
type cutting struct {
	*Pool
	lv      string
	done    catalog.CutLayer // the layer once it is committed, and the rest after the window
	foreign uint64           // changes by other processes before the layer was committed
	ready   *prepared
	turn    atomic.Bool // somebody has decided whether the volume is frozen: see freezes
	frozen  chan froze  // the result of the freeze, and after the window again
}

// froze is the result of a freeze, and whether the window was carried out, or failed.
type froze struct {
	*frozen // nil if the volume has no device any more
	err     error
	window  bool
}

// freezes decides whether the volume is frozen. begin calls it before the freeze. If the pool is
// closed, the operation may leave before begin gets there, and then begin must not freeze a volume
// that nobody would resume. The first caller gets true.
func (c *cutting) freezes() bool { return c.turn.CompareAndSwap(false, true) }

// begin is the act of the change that has committed the layer. It makes the layer's devices,
// freezes the volume, and carries out the window if the freeze ends within lockedFreeze. A freeze
// that takes longer continues without LVM2's lock, because it may take any time and cannot be
// interrupted. ctx is the operation's, and act the act's.
func (c *cutting) begin(ctx, act context.Context, v *view) (err error) {
	if c.ready, err = c.prepare(act, v, c.lv); err != nil {
		return err
	}
	if !c.freezes() {
		return errWentOn
	}
	c.apart(func() {
		var r froze
		r.err = guard(c.log, func() (err error) { r.frozen, err = c.freeze(ctx, c.lv); return err })
		c.frozen <- r
	})
	limit := time.NewTimer(lockedFreeze)
	defer limit.Stop()
	select {
	case r := <-c.frozen:
		defer func() { c.frozen <- r }() // also after a panic, because end waits for it
		if r.err != nil || r.frozen == nil {
			return nil
		}
		r.window = true
		return r.carryOut(act, func(ctx context.Context) error { return c.window(ctx, v) })
	case <-limit.C:
		return nil
	}
}

// end waits for the freeze, and carries out the window if begin has not. err is the error of
// begin. The volume runs again when end returns.
func (c *cutting) end(what string, err error) error {
	r := <-c.frozen
	if r.err == nil && r.frozen == nil { // somebody has removed the device
		r.err = errWentOn
	}
	if r.err != nil {
		return fmt.Errorf("%s: %w", what, r.err)
	}
	defer r.release()
	if err == nil && !r.window {
		err = c.do(r.ctx, &change{what: what, fast: true, act: func(ctx context.Context, v *view) error {
			return r.carryOut(ctx, func(ctx context.Context) error { return c.window(ctx, v) })
		}})
	}
	r.release()
	c.done.Clean = r.clean
	if err != nil {
		return err
	}
	if c.done.At, err = r.cutAt(); err != nil {
		err = fmt.Errorf("%s: %w", what, err)
	}
	return err
}

// window carries out the window of the frozen volume, and what follows with the volume running.
// If another process has changed the metadata since the commit, or a device since prepare, the
// steps may be wrong: LVM2 may even have made the cut. A new plan then decides what is left to do.
func (c *cutting) window(ctx context.Context, v *view) error {
	o, err := v.Changeable(c.lv)
	if err != nil {
		return err
	}
	if live := o.Live(); live == nil || live.LV.ID != c.done.Layer {
		return fmt.Errorf("volume %s/%s: %w: another process changed its snapshots during the cut; retry", v.VG.Name, c.lv, ErrUnavailable)
	}
	same := c.ready != nil && c.Pool.foreign.Load() == c.foreign
	if same {
		same, err = c.ready.same(c.Pool, v.topDevice(o.LV))
	}
	if err == nil && same {
		err = c.ready.carryOut(ctx, c.Pool, v, o)
	}
	if err != nil {
		return err
	}
	return c.settle(ctx, v, c.lv) // without the steps, this opens the window
}

// prepared is the window of a cut, up to the resume of the volume. All tables are loaded.
type prepared struct {
	steps  []step
	kernel kernel // the devices before the steps
}

// prepare makes the devices of a new live layer, and loads all tables, beside the volume that
// runs. The kernel copies nothing into the layer before the window resumes its snapshot. prepare
// returns nil if the volume is suspended; the cut then does everything in its window.
func (p *Pool) prepare(ctx context.Context, v *view, lv string) (*prepared, error) {
	o := v.VolumeByLV(lv)
	if top, err := p.find(v.topDevice(o.LV)); err != nil || top == nil || !top.Live || top.Suspended {
		return nil, err
	}
	c := p.convergence(v, lv, demand{up: o.LV.ID})
	c.before = o
	if err := c.converge(ctx); err != nil || len(c.rest) == 0 {
		return nil, err
	}
	return &prepared{c.rest, c.kernel}, nil
}

// upToWindow returns the steps of the plan before the window of c.before, and keeps the steps of
// the window in c.rest. It returns the whole plan if c.before is nil or has no window.
func (c *convergence) upToWindow(plan []step) []step {
	c.rest = nil
	if c.before == nil {
		return plan
	}
	top := c.view.topDevice(c.before.LV).uuid
	begin := slices.IndexFunc(plan, func(s step) bool { return s.do == stepSuspend && s.uuid == top })
	end := slices.IndexFunc(plan, func(s step) bool { return s.do == stepResume && s.uuid == top })
	if begin < 0 || end < begin {
		return plan
	}
	c.rest = plan[begin+1 : end+1]
	return plan[:begin]
}

// carryOut carries out the window of o, which is frozen.
func (w *prepared) carryOut(ctx context.Context, p *Pool, v *view, o *catalog.Volume) error {
	for i := range w.steps {
		w.steps[i].lease = v.lease
	}
	w.kernel[v.topDevice(o.LV).uuid].Suspended = true
	return (&carrier{Pool: p, view: v, k: w.kernel}).carryOut(ctx, w.steps)
}

// same reports whether the devices that the steps resume are as prepare left them, and the
// volume's own device, top, is suspended by the freeze.
func (w *prepared) same(p *Pool, top device) (bool, error) {
	for _, s := range w.steps {
		if s.do != stepResume {
			continue
		}
		was := w.kernel[s.uuid]
		is, err := p.find(s.device)
		if err != nil || is == nil || is.Device != was.Device || is.Live != was.Live || is.Loaded != was.Loaded || is.Suspended != (was.Suspended || s.uuid == top.uuid) {
			return false, err
		}
	}
	return true, nil
}
