package pool

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
)

const (
	careLook    = 500 * time.Millisecond // pause between two rounds
	attendPause = 10 * time.Second       // pause after a failure

	careTrim    = "trim" // kind of the work that trims frozen stores
	trimsAtOnce = 32     // stores that are trimmed at the same time: after many cuts each store needs a commit

	trimPatience = 2 * time.Second // a trim that takes longer waits, and does not count any more
)

// caretaker finishes what is left to do for volumes: devices that a change could
// not bring in line, unneeded layers, forks that are not being hydrated, stores to
// be trimmed, missing flat stores, and flat stores that nobody reads. Its methods
// may be called concurrently.
type caretaker struct {
	pool *Pool
	soon chan struct{} // holds an item if the caretaker must look now, before its next tick

	mu     sync.Mutex           // guards the fields below; no other lock is taken while it is held
	busy   map[string]bool      // work in progress, by the kind of work and the volume's id
	trims  map[string]time.Time // by the same key: the begin of trims in progress, without those that pause after a failure
	logged map[string]string    // by the same key: the logged failure of the last attempt
}

func newCaretaker(p *Pool) *caretaker {
	return &caretaker{pool: p, soon: make(chan struct{}, 1), busy: map[string]bool{}, trims: map[string]time.Time{}, logged: map[string]string{}}
}

// loop looks for work. It does not ask the kernel for the status of a snapshot,
// because the kernel does not answer while the snapshot's store is suspended and
// full. Those questions, and the work, have goroutines of their own.
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

// wake makes the caretaker look now, because somebody waits for room that stores
// give back.
func (c *caretaker) wake() {
	select {
	case c.soon <- struct{}{}:
	default:
	}
}

func (c *caretaker) round() {
	has, err := c.pool.allUUIDs()
	if err != nil {
		return // the monitor logs the error
	}
	v := c.pool.current.Load()
	for _, o := range v.Volumes.All() {
		c.attendTo(v, o, has)
	}
}

// attendTo starts the work that is left for a volume.
func (c *caretaker) attendTo(v *view, o *catalog.Volume, has map[string]bool) {
	p := c.pool
	if p.facts.unsettled.has(o.LV.ID) {
		c.attend(o, "devices", attendPause, p.settleAgain)
	}
	if o.Theirs() != "" {
		return
	}
	if v.Leftover(o) {
		c.attend(o, "leftover", attendPause, p.tidyVolume)
	}
	if o.Forked() {
		p.hydrator.start(o.LV.Name)
	}
	switch {
	case c.trimming(): // the end of the trims wakes the caretaker
	case p.trimmable(v, o) != nil:
		c.attend(o, careTrim, attendPause, p.trim) // also records boundaries
	default:
		c.news(careTrim+string(o.LV.ID), nil) // forget the failure for a store that is gone
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
		p.facts.steep.drop(o.LV.ID)
	}
	// The monitor asks for the live layers' devices that exist.
	if l := o.Live(); l != nil && !l.Lost && has[v.topDevice(o.LV).uuid] && !has[v.snapDevice(l.LV).uuid] {
		c.catchUp(o)
	}
}

// catchUp brings the kernel in line if o's newest layer is not a snapshot in the kernel
// yet.
func (c *caretaker) catchUp(o *catalog.Volume) {
	c.attendFreely(o, "ahead", attendPause, c.pool.settleAhead)
}

// attend runs f for a volume in the background, with the volume's key held. One f
// of a kind runs at a time for each volume. A volume whose operations take long
// does not delay the others. After a failure attend pauses before it allows the
// next run.
func (c *caretaker) attend(o *catalog.Volume, kind string, pause time.Duration, f func(ctx context.Context, lv string) error) {
	c.attendFreely(o, kind, pause, func(ctx context.Context, lv string) error {
		return c.pool.onVolume(ctx, lv, func(ctx context.Context) error { return f(ctx, lv) })
	})
}

// attendFreely is attend for an f that takes the volume's key itself.
func (c *caretaker) attendFreely(o *catalog.Volume, kind string, pause time.Duration, f func(ctx context.Context, lv string) error) {
	p, key := c.pool, kind+string(o.LV.ID)
	if !c.begin(kind, key) {
		return
	}
	p.background(func(ctx context.Context) {
		defer c.end(key)
		err := f(ctx, o.LV.Name)
		if kind == careTrim {
			c.trimmed(key)
		}
		if ctx.Err() != nil {
			return
		}
		if c.news(key, err) {
			p.log.Error(err, "Maintenance of a volume failed; it will be retried", "volume", o.LV.Name)
			if kind == careTrim {
				p.wiper.wakeWaiters()
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

// begin records that a piece of work of a kind has begun; false if it is already running.
func (c *caretaker) begin(kind, key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy[key] {
		return false
	}
	c.busy[key] = true
	if kind == careTrim {
		c.trims[key] = time.Now()
	}
	return true
}

// trimming reports whether as many stores are being trimmed as may be. A trim that waits
// for a disk or for the volume's key does not delay the trims of other volumes.
func (c *caretaker) trimming() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.recentTrims() >= trimsAtOnce
}

// recentTrims returns the number of trims that count. The caller holds mu.
func (c *caretaker) recentTrims() (n int) {
	for _, began := range c.trims {
		if time.Since(began) < trimPatience {
			n++
		}
	}
	return n
}

// trimmed records that a trim has ended, and makes the caretaker look for the next
// stores when all trims that count have.
func (c *caretaker) trimmed(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if delete(c.trims, key); c.recentTrims() == 0 {
		c.wake()
	}
}

func (c *caretaker) end(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.busy, key)
}

// failed reports whether the last run of a piece of work failed.
func (c *caretaker) failed(o *catalog.Volume, kind string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.logged[kind+string(o.LV.ID)] != ""
}

// news records the result of a piece of work, and reports whether it is a failure
// that was not logged yet.
func (c *caretaker) news(key string, err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		delete(c.logged, key)
		return false
	}
	if c.logged[key] == err.Error() {
		return false
	}
	c.logged[key] = err.Error()
	return true
}

// settleAhead brings the kernel in line with the metadata if the metadata is ahead,
// as after an interrupted cut or an adoption: the newest layer is not a snapshot in
// the kernel yet.
func (p *Pool) settleAhead(ctx context.Context, lv string) error {
	v := p.current.Load()
	o := v.VolumeByLV(lv)
	if o == nil || o.Live() == nil {
		return nil
	}
	if _, err := p.snapshotStatus(v.snapDevice(o.Live().LV).name); err == nil {
		return nil
	}
	if info, err := p.find(v.topDevice(o.LV)); err != nil || info == nil || !info.Live {
		return nil
	}
	return p.onVolume(ctx, lv, func(ctx context.Context) error { return p.settleAgain(ctx, lv) })
}

// settleAgain brings the kernel in line with the metadata after a change failed to.
// It also returns an error if the devices cannot follow yet, as while lvm2 moves
// the extents below them.
func (p *Pool) settleAgain(ctx context.Context, lv string) error {
	return p.do(ctx, &change{what: "bring the devices of volume " + lv + " in line with the metadata", act: func(ctx context.Context, v *view) error {
		if v.VolumeByLV(lv) == nil {
			return nil
		}
		c := p.convergence(v, lv, demand{})
		err := c.converge(ctx)
		for _, o := range c.members {
			err = errors.Join(err, c.behind[o.LV.ID])
			if err == nil && c.want.open[o.LV.ID] != "" {
				err = fmt.Errorf("device %s: %w: nobody needs it, and it is removed when it is closed", c.want.open[o.LV.ID], ErrInUse)
			}
		}
		return err
	}})
}
