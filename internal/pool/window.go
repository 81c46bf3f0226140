package pool

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
)

// windowLimit bounds how long the suspend of a volume may take when tables are swapped. After
// this time the volume is resumed with its old table, and the change is retried.
const windowLimit = 10 * time.Second

// holding is an open window: the time for which steps keep a volume suspended.
type holding struct {
	of     *catalog.Volume
	frozen *frozen // nil if no cut had frozen the volume before
	watch  *stopwatch
	cut    time.Time // time of the cut; zero if there was none
}

// hold is called before a step is carried out. It opens the window if the step begins one.
func (c *carrier) hold(s step) {
	top := s.of != nil && s.uuid == c.view.topDevice(s.of.LV).uuid
	switch {
	case c.window != nil || s.of == nil:
	case s.do == stepSuspend && top:
		c.window = &holding{of: s.of, watch: &stopwatch{}}
		c.window.watch.start()
	case s.do == stepUsed, s.do == stepResume && s.cuts():
		if x := c.k[c.view.topDevice(s.of.LV).uuid]; x == nil || !x.Suspended {
			return // the volume is not suspended, so there is no window
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

// cuts reports whether the step works on the snapshot of the live layer.
func (s step) cuts() bool { return s.layer != nil && s.layer == s.of.Live() }

// held is called after a step was carried out. It closes the window if the step ends one.
func (c *carrier) held(ctx context.Context, s step) {
	w := c.window
	if w == nil || s.of != w.of {
		return
	}
	top := s.uuid == c.view.topDevice(s.of.LV).uuid
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
		klog.FromContext(ctx).V(2).Info("Volume was held", "volume", w.of.LV.Name, "cut", !w.cut.IsZero(), "for", w.watch.total(), "parts", fmt.Sprint(w.watch.laps))
		c.window = nil
	case s.do == stepResume && s.uuid == c.view.realDevice(s.of.LV).uuid:
		w.watch.lap("resume-blocks")
	}
}

// frozenOf returns the freeze that holds o for a cut; nil if there is none.
func (p *Pool) frozenOf(o *catalog.Volume) *frozen {
	f, _ := p.facts.frozen.get(o.LV.ID)
	return f
}

// stopwatch measures the parts of a window.
type stopwatch struct {
	began, last time.Time
	laps        []lap
}

type lap struct {
	part string
	took time.Duration
}

// String formats a lap for the log.
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
