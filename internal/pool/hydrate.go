package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

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
	largestRegion = size.Sectors(4096) // of a mirror: the kernel copies smaller ones slower, and larger ones no faster
	hydrateRetry  = 5 * time.Second    // pause after a failure that may pass
	windowLook    = time.Second        // between two looks at a window of which the kernel tells nothing
)

// hydrator copies what forks read through into their own extents, a window of
// one fork at a time, in turn.
type hydrator struct {
	pool *Pool

	mu      sync.Mutex            // guards what follows; no other lock is taken meanwhile but that of running work
	jobs    map[string]*hydration // by LV name
	stopped map[string]int        // LV names that are not to be hydrated now, and for how many
	windows map[lvm2.ID]*window   // of volumes; changed by who has the volume's key
}

type hydration struct {
	cancel  context.CancelFunc
	ended   chan struct{}
	failure atomic.Pointer[error]
	search  search
	pace    pace
	waiting context.CancelFunc // ends its waiting for its turn
}

// window is a part of a fork that a mirror copies while both are written to.
// Only this process knows that nothing was written past it: after a restart the
// window is copied again from its beginning, which is on the disk.
type window struct {
	layer string // of its device's name
	span
}

// errHydrated: there is nothing to hydrate any more.
var errHydrated = errors.New("no longer a fork")

func newHydrator(p *Pool) *hydrator {
	return &hydrator{pool: p, jobs: map[string]*hydration{}, stopped: map[string]int{}, windows: map[lvm2.ID]*window{}}
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

// settled begins to hydrate every fork of after that was none before, and
// forgets what is not there any more.
func (h *hydrator) settled(before, after *view) {
	now := h.pool.current.Load() // an act that took long tells of metadata that are old by now
	h.mu.Lock()
	maps.DeleteFunc(h.windows, func(id lvm2.ID, _ *window) bool { return now.volumes[id] == nil })
	h.mu.Unlock()
	for id, o := range after.volumes {
		if !o.forked() {
			continue
		}
		if before == nil || before.volumes[id] == nil || !before.volumes[id].forked() {
			h.start(o.lv.Name)
		}
	}
}

// stop ends the hydration of lv, if it is under way, and waits for its end. It
// goes on, or begins, when again is called.
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

// expect has lv's windows begin small again: its user's first requests are about
// to come.
func (h *hydrator) expect(lv string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if j := h.jobs[lv]; j != nil {
		j.pace.gentle.Store(true)
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
		if h.pool.ctx.Err() != nil || errors.Is(err, errHydrated) {
			return // devices stay as they are: pods go on using them
		}
		if errors.Is(err, errTurn) && ctx.Err() == nil {
			continue
		}
		if failed := h.abandon(lv); failed != nil && !errors.Is(failed, errHydrated) {
			log.Error(failed, "Failed to remove the window of a hydration that stopped")
		}
		if ctx.Err() != nil {
			return
		}
		j.failure.Store(&err)
		if errors.Is(err, errUncopied) && j.search.failed(w.span) {
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

// whole says whether nothing of the volume was left behind.
func (h *hydrator) whole(lv string) bool {
	o := h.pool.current.Load().volumeByLV(lv)
	return o == nil || len(o.hydrated.left) == 0
}

// step copies one window. errHydrated if there is none left.
func (h *hydrator) step(ctx context.Context, lv string, j *hydration) (*window, error) {
	// Others have their turns meanwhile.
	if err := h.pool.flattenBelow(ctx, lv); err != nil {
		return nil, err
	}
	pass, err := h.turn(ctx, lv, j)
	if err != nil {
		return nil, err
	}
	defer pass()
	var watch stopwatch
	length := j.pace.window()
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
		late := time.AfterFunc(stallLimit, pass) // of a disk that does not answer
		err = h.commit(ctx, lv, w)
		late.Stop()
		watch.lap("commit")
	}
	if err == nil {
		h.pool.log.V(4).Info("Hydrated a part of a volume", "volume", lv, "bytes", w.length.Bytes(), "others", j.pace.busy, "took", fmt.Sprint(watch.laps))
		resting, done := h.waiting(ctx, j)
		j.pace.pause(resting, w.length.Bytes(), watch.total())
		done()
	}
	return w, err
}

// exclusive runs f as a step in the kernel while nothing else works on lv or
// what it reads through.
func (h *hydrator) exclusive(ctx context.Context, lv string, c *change) error {
	return h.pool.onVolume(ctx, lv, func(ctx context.Context) error { return h.pool.do(ctx, c) })
}

// forkOf finds lv as a volume that is to be hydrated.
func (v *view) forkOf(lv string) (*volume, *layer, *volume, error) {
	o := v.volumeByLV(lv)
	if o == nil || !o.forked() {
		return nil, nil, nil, errHydrated
	}
	if o.odd != nil {
		return nil, nil, nil, fmt.Errorf("volume %s/%s: %w: %s", v.vg.Name, lv, ErrPrecondition, o.theirs())
	}
	l, source, err := v.origin(o)
	return o, l, source, err
}
