package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The two devices that take turns as a fork's window. The next window's device is
// ready before the fork's table changes over to it.
const (
	layerWindow0 = "window0"
	layerWindow1 = "window1"
)

const (
	largestRegion = size.Sectors(4096) // region of a mirror: the kernel copies smaller regions slower, and larger ones no faster
	hydrateRetry  = 5 * time.Second    // pause after a failure that may be temporary
	windowLook    = time.Second        // pause between two checks of a window while the kernel sends no event
)

// hydrator copies the content that forks read through into their own extents. Forks
// take turns, one window at a time.
type hydrator struct {
	pool *Pool

	mu      sync.Mutex            // guards the fields below; only group.mu may be taken while it is held
	jobs    map[string]*hydration // by LV name
	stopped map[string]int        // by LV name: how many callers have stopped its hydration
	windows map[lvm2.ID]*window   // by volume id; changed only with the volume's key
}

type hydration struct {
	cancel  context.CancelFunc
	ended   chan struct{}
	failure atomic.Pointer[error]
	search  search
	pace    pace
	waiting context.CancelFunc // ends a wait for the turn, so that its urgency is checked again
}

// window is a part of a fork that a mirror copies. Writes to the part go to both
// legs. Only this process knows that nothing was written past the mirror. So after
// a restart the window is copied again from its beginning, which is on the disk.
type window struct {
	layer string // layer in the name of its device
	catalog.Span
}

func newHydrator(p *Pool) *hydrator {
	return &hydrator{pool: p, jobs: map[string]*hydration{}, stopped: map[string]int{}, windows: map[lvm2.ID]*window{}}
}

// window returns the volume's window; nil if it has none.
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

// start begins or continues to hydrate the volume, unless its hydration is running
// or stopped.
func (h *hydrator) start(lv string) {
	v, err := h.pool.latest()
	if err != nil {
		return
	}
	if o := v.VolumeByLV(lv); o == nil || !o.Forked() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.jobs[lv] != nil || h.stopped[lv] > 0 || !h.pool.begin() {
		return
	}
	ctx, cancel := context.WithCancel(h.pool.ctx)
	j := &hydration{cancel: cancel, waiting: func() {}, ended: make(chan struct{}), pace: pace{pool: h.pool}}
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

// settled begins to hydrate every fork in after that was no fork in before, and
// forgets the windows of volumes that are gone.
func (h *hydrator) settled(before, after *view) {
	now := h.pool.current.Load() // after a long act, the view after is old
	h.mu.Lock()
	maps.DeleteFunc(h.windows, func(id lvm2.ID, _ *window) bool { return now.Volumes.Get(id) == nil })
	h.mu.Unlock()
	for o := range after.Forks() {
		if before == nil || before.Volumes.Get(o.LV.ID) == nil || !before.Volumes.Get(o.LV.ID).Forked() {
			h.start(o.LV.Name)
		}
	}
}

// stop ends the hydration of lv, if one is running, and waits for its end.
// Hydration stays off until the caller calls again, which starts it.
func (h *hydrator) stop(lv string) (again func()) {
	h.mu.Lock()
	h.stopped[lv]++
	j := h.jobs[lv]
	h.mu.Unlock()
	if j != nil {
		j.cancel()
		<-j.ended
	}
	return func() {
		h.mu.Lock()
		if h.stopped[lv]--; h.stopped[lv] == 0 {
			delete(h.stopped, lv)
		}
		h.mu.Unlock()
		h.start(lv)
	}
}

// expect makes lv's windows small again, because the first requests of its user are
// about to come.
func (h *hydrator) expect(lv string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if j := h.jobs[lv]; j != nil {
		j.pace.gentle.Store(true)
	}
}

// failure returns the error of the last attempt to hydrate lv; nil if it succeeded.
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

// run hydrates until the volume is complete, until that is impossible, or until ctx
// ends.
func (h *hydrator) run(ctx context.Context, lv string, j *hydration) {
	log := h.pool.log.WithValues("volume", lv)
	for {
		var w *window
		err := guard(log, func() (err error) { w, err = h.step(ctx, lv, j); return err })
		if err == nil {
			if j.search.copied(); h.whole(lv) && j.search.calm() {
				j.failure.Store(nil)
			}
			continue
		}
		if h.pool.ctx.Err() != nil || errors.Is(err, catalog.ErrHydrated) {
			return // devices stay as they are, because pods use them
		}
		if errors.Is(err, errTurn) && ctx.Err() == nil {
			continue
		}
		if failed := h.abandon(lv); failed != nil && !errors.Is(failed, catalog.ErrHydrated) {
			log.Error(failed, "Failed to remove the window of a hydration that stopped")
		}
		if ctx.Err() != nil {
			return
		}
		j.failure.Store(&err)
		if errors.Is(err, errUncopied) && j.search.failed(w.Span) {
			log.V(2).Info("Hydrating a smaller part of a restored volume", "err", err)
			continue
		}
		log.Error(err, "Failed to hydrate a restored volume", "retryAfter", hydrateRetry)
		select {
		case <-time.After(hydrateRetry):
		case <-ctx.Done():
		}
	}
}

// whole reports whether no part of the volume was skipped.
func (h *hydrator) whole(lv string) bool {
	o := h.pool.current.Load().VolumeByLV(lv)
	return o == nil || len(o.Hydrated.Left) == 0
}

// step copies one window; ErrHydrated if none is left.
func (h *hydrator) step(ctx context.Context, lv string, j *hydration) (*window, error) {
	// Flatten before taking the turn, so that other forks can use it.
	if err := h.pool.flattenBelow(ctx, lv); err != nil {
		return nil, err
	}
	pass, err := h.turn(ctx, lv, j)
	if err != nil {
		return nil, err
	}
	defer pass()
	var watch stopwatch
	length := j.pace.nextLength()
	watch.start()
	w, err := h.probe(ctx, lv, &j.search, length, pass)
	watch.lap("probe")
	if err == nil {
		w, err = h.open(ctx, lv, &j.search, length)
		watch.lap("open")
	}
	if err == nil {
		err = h.await(ctx, lv, w, pass)
		watch.lap("copy")
	}
	if err == nil {
		late := time.AfterFunc(stallLimit, pass) // a disk may not answer
		err = h.commit(ctx, lv, w)
		late.Stop()
		watch.lap("commit")
	}
	if err == nil {
		h.pool.log.V(4).Info("Hydrated a part of a volume", "volume", lv, "bytes", w.Length.Bytes(), "others", j.pace.busy, "took", fmt.Sprint(watch.laps))
		resting, done := h.waiting(ctx, j)
		j.pace.pause(resting, w.Length.Bytes(), watch.total())
		done()
	}
	return w, err
}

// exclusive carries out c while nothing else works on lv or on the volumes that it
// reads through.
func (h *hydrator) exclusive(ctx context.Context, lv string, c *change) error {
	return h.pool.onVolume(ctx, lv, func(ctx context.Context) error { return h.pool.do(ctx, c) })
}
