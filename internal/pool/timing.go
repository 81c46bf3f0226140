package pool

import (
	"sync"
	"time"
)

// Timing is a histogram of durations.
type Timing struct {
	Part  string // the measured part; "" for the whole
	Count uint64
	Sum   time.Duration
	Most  time.Duration
	Below map[time.Duration]uint64 // by upper bound: how many durations are at most that long
}

// timingBounds are the upper bounds in each Timing.
var timingBounds = func() (all []time.Duration) {
	for b := 100 * time.Microsecond; b < 15*time.Second; b *= 10 {
		all = append(all, b, b*5/2, b*5)
	}
	return all
}()

// timings collects Timings by part.
type timings struct {
	mu    sync.Mutex
	parts []*Timing
}

func (t *timings) add(part string, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var of *Timing
	for _, x := range t.parts {
		if x.Part == part {
			of = x
		}
	}
	if of == nil {
		of = &Timing{Part: part, Below: map[time.Duration]uint64{}}
		t.parts = append(t.parts, of)
	}
	of.Count, of.Sum, of.Most = of.Count+1, of.Sum+took, max(of.Most, took)
	for _, b := range timingBounds {
		if took <= b {
			of.Below[b]++
		}
	}
}

// read returns copies of the collected histograms.
func (t *timings) read() []Timing {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Timing
	for _, x := range t.parts {
		c := *x
		c.Below = make(map[time.Duration]uint64, len(timingBounds))
		for _, b := range timingBounds {
			c.Below[b] = x.Below[b]
		}
		out = append(out, c)
	}
	return out
}

// Windows returns how long cuts have suspended volumes in use since the pool was opened: the
// whole windows (part "") and the ioctls inside.
func (p *Pool) Windows() []Timing { return p.windows.read() }

// Brakes returns how long writers have been held while stores grew, since the pool was
// opened.
func (p *Pool) Brakes() []Timing { return p.brakes.read() }
