package pool

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"
)

// windowLimit is how long a volume may take to suspend for a swap of tables; one that takes
// longer goes on as before, and the change is tried again.
const windowLimit = 10 * time.Second

// holding is a window: how long steps hold a volume still, and what cuts it.
type holding struct {
	of     *volume
	frozen *frozen // nil: it was not held before
	watch  *stopwatch
	cut    time.Time // of the cut; zero: there was none
}

// hold takes note that a step is about to be carried out, with which a window may begin.
func (c *carrier) hold(s step) {
	top := s.of != nil && s.uuid == c.view.topDevice(s.of.lv).uuid
	switch {
	case c.window != nil || s.of == nil:
	case s.do == stepSuspend && top:
		c.window = &holding{of: s.of, watch: &stopwatch{}}
		c.window.watch.start()
	case s.do == stepUsed, s.do == stepResume && s.cuts():
		if x := c.k[c.view.topDevice(s.of.lv).uuid]; x == nil || !x.Suspended {
			return // nobody writes to it
		}
		c.window = &holding{of: s.of, frozen: c.frozenOf(s.of), watch: &stopwatch{}}
		if c.window.frozen == nil {
			c.window.watch.start()
		} else {
			c.window.watch = &c.window.frozen.watch
			c.window.watch.lap("load")
		}
	}
}

// cuts says whether the step is about the snapshot of the live layer.
func (s step) cuts() bool { return s.layer != nil && s.layer == s.of.live() }

// held takes note that a step was carried out, and of the end of a window.
func (c *carrier) held(ctx context.Context, s step) {
	w := c.window
	if w == nil || s.of != w.of {
		return
	}
	top := s.uuid == c.view.topDevice(s.of.lv).uuid
	switch {
	case s.do == stepSuspend && top:
		w.watch.lap("suspend")
	case s.do == stepUsed:
		w.watch.lap("read-former")
	case s.do == stepResume && s.cuts():
		w.cut = time.Now()
		w.watch.lap("resume-snapshot")
	case s.do == stepResume && top:
		w.watch.lap("resume-volume")
		if !w.cut.IsZero() {
			w.watch.report(&c.windows)
		}
		if !w.cut.IsZero() && w.frozen != nil {
			w.frozen.noteCut(w.cut)
		}
		klog.FromContext(ctx).V(2).Info("Volume was held", "volume", w.of.lv.Name, "cut", !w.cut.IsZero(), "for", w.watch.total(), "parts", fmt.Sprint(w.watch.laps))
		c.window = nil
	case s.do == stepResume && s.uuid == c.view.realDevice(s.of.lv).uuid:
		w.watch.lap("resume-blocks")
	}
}

// frozenOf returns what holds o still for a cut; nil if nothing does.
func (p *Pool) frozenOf(o *volume) *frozen {
	f, _ := p.facts.frozen.get(o.lv.ID)
	return f
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
