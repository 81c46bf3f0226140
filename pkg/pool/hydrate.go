package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The two devices that take turns as a fork's window: the next one is ready
// before the fork's table changes over to it.
const (
	layerWindow0 = "window0"
	layerWindow1 = "window1"
)

const (
	largestRegion = size.Sectors(4096) // of a mirror: the kernel refuses larger ones, and copies smaller ones slower
	hydrateRetry  = 5 * time.Second    // pause after a failure that may pass
	windowLook    = 2 * time.Millisecond
	windowLookMax = 50 * time.Millisecond
)

// hydrator copies what forks read through into their own extents, a window of
// one fork at a time, in turn.
type hydrator struct {
	pool *Pool
	pace pace

	mu      sync.Mutex
	jobs    map[string]*hydration // by LV name
	windows map[lvm2.ID]*window   // of volumes; changed by who has the volume's key
}

type hydration struct {
	cancel  context.CancelFunc
	ended   chan struct{}
	failure atomic.Pointer[error]
}

// window is a part of a fork that a mirror copies while both are written to.
// Only this process knows that nothing was written past it: after a restart the
// window is copied again from its beginning, which is on the disk.
type window struct {
	layer         string // of its device's name
	start, length size.Sectors
}

func (w *window) end() size.Sectors { return w.start + w.length }

// errHydrated: there is nothing to hydrate any more.
var errHydrated = errors.New("not a fork any more")

func newHydrator(p *Pool) *hydrator {
	return &hydrator{pool: p, pace: pace{pool: p}, jobs: map[string]*hydration{}, windows: map[lvm2.ID]*window{}}
}

// window returns the volume's window, nil if there is none.
func (h *hydrator) window(id lvm2.ID) *window {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.windows[id]
}

func (h *hydrator) setWindow(id lvm2.ID, w *window) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w == nil {
		delete(h.windows, id)
	} else {
		h.windows[id] = w
	}
}

// start begins to hydrate the volume, or goes on, unless that is under way.
func (h *hydrator) start(lv string) {
	v, err := h.pool.latest()
	if err != nil {
		return
	}
	if o := v.volumeByLV(lv); o == nil || !o.forked() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.jobs[lv] != nil || !h.pool.begin() {
		return
	}
	ctx, cancel := context.WithCancel(h.pool.ctx)
	j := &hydration{cancel: cancel, ended: make(chan struct{})}
	h.jobs[lv] = j
	go func() {
		defer h.pool.work.Done()
		defer cancel()
		h.run(ctx, lv, j)
		h.mu.Lock()
		delete(h.jobs, lv)
		h.mu.Unlock()
		close(j.ended)
	}()
}

// cancel ends the hydration of lv, if it is under way, and waits for its end.
func (h *hydrator) cancel(lv string) {
	h.mu.Lock()
	j := h.jobs[lv]
	h.mu.Unlock()
	if j != nil {
		j.cancel()
		<-j.ended
	}
}

// failure returns why the last attempt to hydrate lv failed, if it did.
func (h *hydrator) failure(lv string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if j := h.jobs[lv]; j != nil {
		if err := j.failure.Load(); err != nil {
			return *err
		}
	}
	return nil
}

// run hydrates until that is complete, or can never be, or is cancelled.
func (h *hydrator) run(ctx context.Context, lv string, j *hydration) {
	for {
		err := h.step(ctx, lv)
		if err == nil {
			j.failure.Store(nil)
			continue
		}
		if h.pool.ctx.Err() != nil || errors.Is(err, errHydrated) {
			return // devices stay as they are: pods go on using them
		}
		if failed := h.abandon(lv); failed != nil && !errors.Is(failed, errHydrated) {
			h.pool.log.Error(failed, "A window that is not being copied any more stays", "volume", lv)
		}
		if ctx.Err() != nil {
			return
		}
		j.failure.Store(&err)
		h.pool.log.Error(err, "Hydrating a restored volume", "volume", lv, "again in", hydrateRetry)
		select {
		case <-time.After(hydrateRetry):
		case <-ctx.Done():
		}
	}
}

// hydrationTurn is the key under which windows take turns: one at a time is
// copied, so that the disks see one stream.
const hydrationTurn = "hydration"

// step copies one window. errHydrated if there is none left.
func (h *hydrator) step(ctx context.Context, lv string) error {
	release, err := h.pool.keys.lock(ctx, hydrationTurn)
	if err != nil {
		return err
	}
	defer release()
	length := h.pace.window()
	began := time.Now()
	w, err := h.open(ctx, lv, length)
	if err == nil {
		err = h.await(ctx, lv, w)
	}
	if err == nil {
		err = h.commit(ctx, lv, w)
	}
	if err == nil {
		h.pace.pause(ctx, w.length.Bytes(), time.Since(began))
	}
	return err
}

// exclusive runs f as a step in the kernel while nothing else works on lv or
// what it reads through.
func (h *hydrator) exclusive(ctx context.Context, lv string, c *change) error {
	_, err := run(ctx, h.pool, []string{lvKey(lv)}, func(ctx context.Context) (none struct{}, err error) {
		return none, h.pool.do(ctx, c)
	})
	return err
}

// forkOf finds lv as a volume that is to be hydrated.
func (v *view) forkOf(lv string) (*volume, *layer, *volume, error) {
	o := v.volumeByLV(lv)
	if o == nil || !o.forked() {
		return nil, nil, nil, errHydrated
	}
	l, source, err := v.origin(o)
	return o, l, source, err
}

// open makes the volume's next window.
func (h *hydrator) open(ctx context.Context, lv string, length size.Sectors) (w *window, err error) {
	err = h.exclusive(ctx, lv, &change{what: "hydrate volume " + lv, act: func(ctx context.Context, v *view) error {
		p := h.pool
		o, l, _, err := v.forkOf(lv)
		if err != nil {
			return err
		}
		// The kernel may be behind: after an interruption, or a change that failed.
		if err := p.settle(ctx, v, lv); err != nil {
			return err
		}
		through, err := p.forkUp(ctx, v, o)
		if err != nil {
			return err
		}
		own, err := p.linearTable(v, o.lv)
		if err != nil {
			return err
		}
		old := h.window(o.lv.ID)
		w = &window{layer: layerWindow0, start: o.hydrated}
		if old != nil && old.layer == layerWindow0 {
			w.layer = layerWindow1
		}
		to := cutTable(own, w.start, min(l.length, w.start+length))[0] // to one piece of the disks
		w.length = to.Length
		d := p.device(v, o.lv, w.layer, udevReal)
		if err := p.takeDown(ctx, d); err != nil { // left by an interruption
			return err
		}
		target := to.Target.(dm.Linear)
		if _, _, err := p.ensureFrom(nil, d, whole(w.length, dm.Mirror{
			Region: region(w.length), Legs: []dm.Area{{Device: through, Offset: w.start}, dm.Area(target)}, HandleErrors: true,
		}), false); err != nil {
			return err
		}
		h.setWindow(o.lv.ID, w)
		// Who writes past a mirror that copies already leaves the copy stale.
		if err := p.rebase(ctx, v, o, func() error { return p.dm.Resume(d.name, d.udev) }); err != nil {
			h.setWindow(o.lv.ID, old)
			return errors.Join(err, p.rebase(ctx, v, o, func() error { return nil }), p.takeDown(ctx, d))
		}
		if old != nil {
			return p.takeDown(ctx, p.device(v, o.lv, old.layer, udevReal))
		}
		return nil
	}})
	return w, err
}

// region is the largest unit of copying that the kernel takes for a mirror of
// that length.
func region(length size.Sectors) size.Sectors {
	r := largestRegion
	for r > length {
		r /= 2
	}
	return r
}

// rebase gives the device that has the volume's content the table that it
// should have now, if there is the device; inside runs while it is held.
func (p *Pool) rebase(ctx context.Context, v *view, o *volume, inside func() error) error {
	d := p.device(v, o.lv, "", udevVisible)
	if o.live() != nil {
		d = p.device(v, o.lv, layerReal, udevReal)
	}
	info, err := p.find(d)
	if err != nil {
		return err
	}
	if info == nil || !info.Live {
		return inside()
	}
	table, err := p.blocks(ctx, v, o)
	if err != nil {
		return err
	}
	if _, _, err := p.ensureFrom(info, d, table, readOnlyLV(o.lv)); err != nil {
		return err
	}
	return p.swap(ctx, d, info.Suspended, dm.SuspendOptions{SkipLockFS: true}, inside)
}

// await waits until the window is copied.
func (h *hydrator) await(ctx context.Context, lv string, w *window) error {
	v, err := h.pool.latest()
	if err != nil {
		return err
	}
	o := v.volumeByLV(lv)
	if o == nil {
		return errHydrated
	}
	name := h.pool.device(v, o.lv, w.layer, udevReal).name
	for pause := windowLook; ; pause = min(2*pause, windowLookMax) {
		copied, err := h.copied(name)
		if err != nil || copied {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// copied says whether a window's mirror has copied everything; an error if it cannot.
func (h *hydrator) copied(name string) (bool, error) {
	status, err := h.pool.dm.Status(name)
	if err != nil {
		return false, err
	}
	if len(status) != 1 {
		return false, fmt.Errorf("device %s has %d targets instead of a mirror", name, len(status))
	}
	m, is := status[0].Status.(dm.MirrorStatus)
	if !is {
		return false, fmt.Errorf("device %s is no mirror", name)
	}
	for i, leg := range m.Legs {
		if leg.Health != dm.LegAlive {
			return false, fmt.Errorf("copying through device %s: the disk below leg %d (%v) failed, the kernel says %s", name, i, leg.Device, m)
		}
	}
	return m.Synced(), nil
}

// commit records that the window is copied. With the last one the volume is an
// ordinary one.
func (h *hydrator) commit(ctx context.Context, lv string, w *window) error {
	_, err := run(ctx, h.pool, []string{lvKey(lv)}, func(ctx context.Context) (none struct{}, err error) {
		err = h.pool.do(ctx, &change{what: "check the window of volume " + lv, act: func(ctx context.Context, v *view) error {
			return h.valid(ctx, v, lv, w)
		}})
		if err != nil {
			return none, err
		}
		return none, h.pool.do(ctx, h.advance(lv, w))
	})
	return err
}

// advance is the change that moves the volume's position behind the window.
func (h *hydrator) advance(lv string, w *window) *change {
	p, finished, family := h.pool, false, []string(nil)
	return &change{what: "hydrate volume " + lv, edit: func(t *edit) error {
		o, l, source, err := t.forkOf(lv)
		if err != nil {
			return err
		}
		if err := h.intact(t.view, o, l, source, w); err != nil {
			return err
		}
		// What was copied must be on the disk before the metadata says so.
		for _, s := range o.lv.Segments {
			if pv := t.vg.PVs[s.Stripes[0].PV]; !slices.Contains(t.written, pv) {
				t.written = append(t.written, pv)
			}
		}
		c := o.lv.Clone()
		if w.end() < l.length {
			c.Tags = setTag(c.Tags, tagHydrated, strconv.FormatUint(uint64(w.end()), 10))
			return t.put(c)
		}
		finished, family = true, t.family(source.lv.Name)
		return t.hydrated(o, l)
	}, act: func(ctx context.Context, v *view) error {
		if !finished {
			return nil
		}
		o := v.volumeByLV(lv)
		if o == nil {
			return nil
		}
		h.setWindow(o.lv.ID, nil)
		p.wiper.wake()
		err := p.rebase(ctx, v, o, func() error { return nil })
		if err == nil {
			err = p.forkDown(ctx, v, o)
		}
		if err == nil {
			err = p.retire(ctx, v, family)
		}
		if err != nil {
			p.unsettled.Store(o.lv.ID, true)
			p.log.Error(err, "A volume that is hydrated has devices left", "volume", lv)
		}
		return nil
	}}
}

// valid makes sure that the window's copy is the volume's content: it is
// complete, and every write went to both sides.
func (h *hydrator) valid(ctx context.Context, v *view, lv string, w *window) error {
	p := h.pool
	o, l, source, err := v.forkOf(lv)
	if err != nil {
		return err
	}
	if err := h.intact(v, o, l, source, w); err != nil {
		return err
	}
	user := p.device(v, o.lv, "", udevVisible)
	if o.live() != nil {
		user = p.device(v, o.lv, layerReal, udevReal)
	}
	info, err := p.find(user)
	if err != nil || info == nil {
		return err
	}
	want, err := p.blocks(ctx, v, o)
	if err != nil {
		return err
	}
	if have, err := p.dm.Table(info.Name); err != nil || !have.Equal(want) {
		return errors.Join(fmt.Errorf("device %s: its table was changed", info.Name), err)
	}
	return nil
}

// intact makes sure that nothing that the window's copy was read from failed
// without a word.
func (h *hydrator) intact(v *view, o *volume, l *layer, source *volume, w *window) error {
	p := h.pool
	if h.window(o.lv.ID) != w || o.hydrated != w.start {
		return fmt.Errorf("volume %s/%s: its window was changed", v.vg.Name, o.lv.Name)
	}
	if copied, err := h.copied(p.device(v, o.lv, w.layer, udevReal).name); err != nil || !copied {
		return errors.Join(fmt.Errorf("volume %s/%s: its window is not copied", v.vg.Name, o.lv.Name), err)
	}
	if s, err := p.snapshotStatus(p.device(v, o.lv, layerFork, udevReal).name); err != nil || s.Invalid {
		return errors.Join(fmt.Errorf("volume %s/%s: %w: the store of what was written to it is gone", v.vg.Name, o.lv.Name, ErrLost), err)
	}
	return errors.Join(p.intact(v, source, l), v.writable())
}

// hydrated makes o an ordinary volume.
func (t *edit) hydrated(o *volume, l *layer) error {
	c := o.lv.Clone()
	c.Tags = dropTags(c.Tags, tagCopy, tagHydrated)
	if !o.deleted {
		c.Flags = nil
	}
	if err := t.put(c); err != nil {
		return err
	}
	if live := o.live(); live != nil {
		c := live.lv.Clone()
		c.Flags = nil
		if err := t.put(c); err != nil {
			return err
		}
	}
	if err := t.discard(o.fork.lv); err != nil {
		return err
	}
	return t.prune(l)
}

// abandon goes back to a fork without a window. A mirror that failed holds
// writes: they are given to the fork.
func (h *hydrator) abandon(lv string) error {
	p := h.pool
	return h.exclusive(p.ctx, lv, &change{what: "stop hydrating volume " + lv, act: func(ctx context.Context, v *view) error {
		o, _, _, err := v.forkOf(lv)
		if err != nil {
			return err
		}
		w := h.window(o.lv.ID)
		if w == nil {
			return nil
		}
		d := p.device(v, o.lv, w.layer, udevReal)
		info, err := p.find(d)
		if err != nil {
			return err
		}
		if info != nil {
			fork, err := p.find(p.device(v, o.lv, layerFork, udevReal))
			if err != nil || fork == nil {
				return err
			}
			if _, _, err := p.ensureFrom(info, d, whole(w.length, dm.Linear{Device: fork.Device, Offset: w.start}), false); err != nil {
				return err
			}
			if err := p.swap(ctx, d, info.Suspended, dm.SuspendOptions{SkipLockFS: true, NoFlush: true}, func() error { return nil }); err != nil {
				return err
			}
		}
		h.setWindow(o.lv.ID, nil)
		if err := p.rebase(ctx, v, o, func() error { return nil }); err != nil {
			h.setWindow(o.lv.ID, w)
			return err
		}
		return p.takeDown(ctx, d)
	}})
}
