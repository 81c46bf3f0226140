package pool

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	careLook    = 500 * time.Millisecond // between two looks what is left to do
	attendPause = 10 * time.Second       // after settling a volume's devices failed

	careTrim = "trim" // the kind of work by which frozen stores are trimmed
)

// caretaker has done what is left to do for volumes: devices that a change could
// not bring in line, layers that nothing needs, forks that nobody hydrates, stores
// to be trimmed, flat stores that are missing or that nobody reads by. Its methods may be called concurrently.
type caretaker struct {
	pool *Pool
	soon chan struct{} // has one if the caretaker is to look now, not at its next tick

	mu   sync.Mutex        // guards what follows; no other lock is taken meanwhile
	busy map[string]bool   // what is being done, by the kind of work and the volume's id
	told map[string]string // of the same: what was logged of the last failure, as long as it goes on
}

func newCaretaker(p *Pool) *caretaker {
	return &caretaker{pool: p, soon: make(chan struct{}, 1), busy: map[string]bool{}, told: map[string]string{}}
}

// loop looks what is left to do. It does not ask the kernel for the status of a
// snapshot, which is not answered while the snapshot's store is suspended and full: that,
// and the work, have goroutines of their own.
func (c *caretaker) loop(ctx context.Context) {
	for tick := time.NewTicker(careLook); ; {
		select {
		case <-tick.C:
			c.round()
		case <-c.soon:
			c.round()
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}

// wake has the caretaker look now: somebody waits for room that stores give back.
func (c *caretaker) wake() {
	select {
	case c.soon <- struct{}{}:
	default:
	}
}

func (c *caretaker) round() {
	has, err := c.pool.allUUIDs()
	if err != nil {
		return // the monitor tells
	}
	v := c.pool.current.Load()
	for _, o := range v.volumes {
		c.attendTo(v, o, has)
	}
}

// attendTo has done what is left to do for a volume.
func (c *caretaker) attendTo(v *view, o *volume, has map[string]bool) {
	p := c.pool
	if p.facts.unsettled.has(o.lv.ID) {
		c.attend(o, "devices", attendPause, p.settleAgain)
	}
	if o.theirs() != "" {
		return
	}
	if v.leftover(o) {
		c.attend(o, "leftover", attendPause, p.tidyVolume)
	}
	if o.forked() {
		p.hydrator.start(o.lv.Name)
	}
	if p.trimmable(v, o) != nil {
		c.attend(o, careTrim, attendPause, p.trim) // records boundaries, too
	} else {
		c.news(careTrim+string(o.lv.ID), nil) // of a store that is gone
		if p.unrecorded(o) {
			c.attend(o, "boundary", attendPause, p.recordBoundaries)
		}
	}
	if p.idleFlat(v, o, has) != nil {
		c.attend(o, "flats", attendPause, p.dropIdleFlats)
	}
	if v.steepest(o, has, p.folder.folds) != nil {
		c.attendFreely(o, "steep", attendPause, p.flattenRead)
	} else {
		p.facts.steep.drop(o.lv.ID)
	}
	if l := o.live(); l != nil && !l.lost && has[v.topDevice(o.lv).uuid] {
		c.attendFreely(o, "ahead", attendPause, p.settleAhead)
	}
}

// attend runs f for a volume, whose key is held, in the background, one of a kind at
// a time, so that a volume whose operations take long does not keep others from being
// watched. After a failure it pauses.
func (c *caretaker) attend(o *volume, kind string, pause time.Duration, f func(ctx context.Context, lv string) error) {
	c.attendFreely(o, kind, pause, func(ctx context.Context, lv string) error {
		return c.pool.onVolume(ctx, lv, func(ctx context.Context) error { return f(ctx, lv) })
	})
}

// attendFreely does what attend does, for what takes the volume's key itself.
func (c *caretaker) attendFreely(o *volume, kind string, pause time.Duration, f func(ctx context.Context, lv string) error) {
	p, key := c.pool, kind+string(o.lv.ID)
	if !c.begin(key) {
		return
	}
	p.background(func(ctx context.Context) {
		defer c.end(key)
		err := f(ctx, o.lv.Name)
		if ctx.Err() != nil {
			return
		}
		if c.news(key, err) {
			p.log.Error(err, "Maintenance of a volume failed; it will be retried", "volume", o.lv.Name)
			if kind == careTrim {
				p.wiper.lookAgain()
			}
		}
		if err == nil {
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	})
}

// begin notes that a piece of work is being done; false if it is already.
func (c *caretaker) begin(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy[key] {
		return false
	}
	c.busy[key] = true
	return true
}

func (c *caretaker) end(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.busy, key)
}

// failed says whether a piece of work ended with an error when it was last done.
func (c *caretaker) failed(o *volume, kind string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.told[kind+string(o.lv.ID)] != ""
}

// news notes how a piece of work has ended and says whether that is a failure which
// was not logged yet.
func (c *caretaker) news(key string, err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		delete(c.told, key)
		return false
	}
	if c.told[key] == err.Error() {
		return false
	}
	c.told[key] = err.Error()
	return true
}

// settleAhead brings the kernel in line with the metadata where they are ahead, as
// after a cut that was interrupted, or an adoption: the newest layer is no snapshot yet.
func (p *Pool) settleAhead(ctx context.Context, lv string) error {
	v := p.current.Load()
	o := v.volumeByLV(lv)
	if o == nil || o.live() == nil {
		return nil
	}
	if _, err := p.snapshotStatus(v.snapDevice(o.live().lv).name); err == nil {
		return nil
	}
	if info, err := p.find(v.topDevice(o.lv)); err != nil || info == nil || !info.Live {
		return nil
	}
	return p.onVolume(ctx, lv, func(ctx context.Context) error { return p.settleAgain(ctx, lv) })
}

// settleAgain brings the kernel in line with the metadata where a change failed to. An
// error says also that the devices cannot follow yet, as while lvm2 moves what they lie on.
func (p *Pool) settleAgain(ctx context.Context, lv string) error {
	return p.do(ctx, &change{what: "bring the devices of volume " + lv + " in line with the metadata", act: func(ctx context.Context, v *view) error {
		if v.volumeByLV(lv) == nil {
			return nil
		}
		c := p.convergence(v, lv, demand{})
		err := c.converge(ctx)
		for _, o := range c.members {
			err = errors.Join(err, c.behind[o.lv.ID])
		}
		return err
	}})
}
