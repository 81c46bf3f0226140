package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// windowLimit is how long a volume may take to suspend for a swap of tables; one that takes
// longer goes on as before, and the change is tried again.
const windowLimit = 10 * time.Second

// window swaps tables while the volume is held still. Only ioctls are inside.
// The order is the kernel's: the snapshot before its origin, and the origin
// last, because resuming it computes how writes are split.
func (p *Pool) window(ctx context.Context, v *view, o *volume, live *layer, top *dm.Info, b below) error {
	own, at := stopwatch{}, time.Time{}
	watch := &own
	f := p.frozenOf(o)
	if f != nil && (top == nil || !top.Suspended) { // it has gone on before
		f = nil
	}
	if f != nil {
		watch = &f.watch
	}
	inside := func() error {
		watch.lap(map[bool]string{false: "suspend", true: "load"}[f != nil])
		if b.idle {
			p.noteBoundary(v, o, b.real)
			watch.lap("read-former")
			snap := v.snapDevice(live.lv)
			if err := p.resume(snap); err != nil {
				return err
			}
			at = time.Now()
			watch.lap("resume-snapshot")
		}
		if b.longer {
			base := v.realDevice(o.lv)
			if err := p.resume(base); err != nil {
				return err
			}
			watch.lap("resume-blocks")
		}
		return nil
	}
	vol := v.topDevice(o.lv)
	if top == nil || !top.Live {
		if err := inside(); err != nil {
			return err
		}
		return p.resume(vol)
	}
	if f == nil {
		watch.start()
	}
	// A cut that must find the file system frozen has done that before. Here the
	// group's lock is held.
	err := p.swap(ctx, vol, top.Suspended, dm.SuspendOptions{SkipLockFS: true}, inside)
	watch.lap("resume-volume")
	if b.idle && err == nil {
		watch.report(&p.windows)
		if f != nil {
			f.noteCut(at)
		}
	}
	klog.FromContext(ctx).V(2).Info("Volume was held", "volume", o.lv.Name, "cut", b.idle, "for", watch.total(), "parts", fmt.Sprint(watch.laps), "err", err)
	return err
}

// frozenOf returns what holds o still for a cut; nil if nothing does.
func (p *Pool) frozenOf(o *volume) *frozen {
	f, _ := p.facts.frozen.get(o.lv.ID)
	return f
}

// swap holds a device still while inside runs and lets it go on with the table
// that is loaded; after an error with the one that it had.
func (p *Pool) swap(ctx context.Context, d device, suspended bool, o dm.SuspendOptions, inside func() error) error {
	if !suspended {
		o.Running = true
		limited, cancel := context.WithTimeout(ctx, windowLimit)
		defer cancel()
		if err := p.dm.Suspend(limited, d.name, o); err != nil {
			return errors.Join(err, p.dm.Clear(d.name))
		}
	}
	err := d.lease.valid()
	if err == nil {
		err = guard(klog.FromContext(ctx), inside)
	}
	if err == nil {
		err = d.lease.valid()
	}
	if err != nil {
		err = errors.Join(err, p.dm.Clear(d.name))
	}
	return errors.Join(err, p.dm.Resume(d.name, d.udev))
}

// swapTable takes into use the table that is loaded for d, whose users wait
// meanwhile; their file system is not frozen.
func (p *Pool) swapTable(ctx context.Context, d device, suspended bool) error {
	return p.swap(ctx, d, suspended, dm.SuspendOptions{SkipLockFS: true}, func() error { return nil })
}

// stopwatch measures the parts of something.
type stopwatch struct {
	began, last time.Time
	laps        []lap
}

type lap struct {
	part string
	took time.Duration
}

// String is for logs.
func (l lap) String() string { return fmt.Sprintf("%s %v", l.part, l.took) }

func (w *stopwatch) start() { w.began, w.last, w.laps = time.Now(), time.Now(), nil }

func (w *stopwatch) lap(part string) {
	now := time.Now()
	w.laps, w.last = append(w.laps, lap{part, now.Sub(w.last)}), now
}

func (w *stopwatch) total() time.Duration { return w.last.Sub(w.began) }

// report adds the parts and their sum to timings.
func (w *stopwatch) report(to *timings) {
	for _, l := range w.laps {
		to.add(l.part, l.took)
	}
	to.add("", w.total())
}
