package pool

import (
	"context"
	"errors"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// roomLimit is how long a cut waits for extents that stores give back.
const roomLimit = 10 * time.Second

// noRoomYet is an ErrNoSpace that may pass in a moment.
type noRoomYet struct{ error }

func (e *noRoomYet) Unwrap() error { return e.error }

// onceRoom calls create, and calls it again whenever extents become free while
// create fails for lack of room. It waits up to roomLimit for extents that stores
// give back (*noRoomYet), and as long as ctx lives for deleted volumes to be wiped.
// Only one caller at a time waits for stores, because there may be room for only
// one. create must not hold keys of volumes that others need to free extents.
func onceRoom[T any](ctx context.Context, p *Pool, create func() (T, error)) (T, error) {
	var yet *noRoomYet
	var debt *PendingError
	limit := roomLimit
	if end, limited := ctx.Deadline(); limited { // leaves time to return the reason
		limit = min(limit, time.Until(end)/2)
	}
	moment, done := context.WithTimeout(ctx, limit)
	defer done()
	turn := func() {}
	defer func() { turn() }()
	for waits := false; ; {
		wiped := p.wiper.freed() // taken before create looks for room, so that no change is missed
		made, err := create()
		until := ctx
		switch {
		case errors.As(err, &yet) && !waits:
			release, late := p.keys.lock(moment, roomKey)
			if late != nil {
				return made, yet.error
			}
			turn, waits = release, true
			continue
		case errors.As(err, &yet):
			until = moment
			p.caretaker.wake()
			if p.wiper.problem() == nil { // else the wiper pauses after its failure
				p.wiper.wake()
			}
		case errors.As(err, &debt) && debt.wiping:
			turn()
			turn, waits = func() {}, false
		default:
			return made, err
		}
		select {
		case <-wiped:
		case <-until.Done():
			return made, err
		}
	}
}

// failedTrash is the trash that a round could not wipe, with the reasons.
type failedTrash struct {
	is  map[lvm2.ID]bool
	why []error
}

func (u *failedTrash) add(lv *lvm2.LV, err error) {
	if err != nil {
		u.is[lv.ID], u.why = true, append(u.why, err)
	}
}

// stuckAfter is the number of consecutive rounds after which trash counts as stuck,
// if they took longer than busyLimit. A device that is open only briefly does not
// count.
const stuckAfter = 2

// failing is trash that the last rounds could not wipe.
type failing struct {
	rounds   int
	since    time.Time
	reported bool // those who wait for room were told
}

func (f failing) stuck() bool { return f.rounds >= stuckAfter && time.Since(f.since) > busyLimit }

// stuck reports whether a piece of trash cannot be wiped, as far as the wiper
// knows.
func (w *wiper) stuck(id lvm2.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failures[id].stuck()
}

// note records which trash a round could not wipe.
func (w *wiper) note(unwiped map[lvm2.ID]bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now, news := map[lvm2.ID]failing{}, false
	for id := range unwiped {
		f := w.failures[id]
		if f.rounds++; f.rounds == 1 {
			f.since = time.Now()
		}
		news = news || f.stuck() && !f.reported
		f.reported = f.stuck()
		now[id] = f
	}
	if w.failures = now; news {
		w.wakeWaitersLocked()
	}
}

// wakeWaiters wakes those who wait for room: extents became free, or expected extents
// will not become free.
func (w *wiper) wakeWaiters() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wakeWaitersLocked()
}

// wakeWaitersLocked is wakeWaiters for a caller that holds the mutex.
func (w *wiper) wakeWaitersLocked() {
	close(w.next)
	w.next = make(chan struct{})
}
