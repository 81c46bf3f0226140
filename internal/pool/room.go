package pool

import (
	"context"
	"errors"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// roomLimit is how long a cut waits for what stores give back.
const roomLimit = 10 * time.Second

// noRoomYet is an ErrNoSpace that may be over in a moment.
type noRoomYet struct{ error }

func (e *noRoomYet) Unwrap() error { return e.error }

// onceRoom calls create, again whenever extents become free if it must wait for that:
// for what stores give back (*noRoomYet) a moment, for deleted volumes as long as ctx lives.
// For the former one waits at a time: there may be room for one. create leaves the keys of
// volumes to those who free some.
func onceRoom[T any](ctx context.Context, p *Pool, create func() (T, error)) (T, error) {
	var yet *noRoomYet
	var debt *PendingError
	limit := roomLimit
	if end, limited := ctx.Deadline(); limited { // in time for the caller to hear why
		limit = min(limit, time.Until(end)/2)
	}
	moment, done := context.WithTimeout(ctx, limit)
	defer done()
	turn := func() {}
	defer func() { turn() }()
	for waits := false; ; {
		wiped := p.wiper.freed() // before looking for room, so that nothing is missed
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
			if p.wiper.problem() == nil { // else it has a pause of its own
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

// unwiped is which trash a round could not wipe, and why.
type unwiped struct {
	is  map[lvm2.ID]bool
	why []error
}

func (u *unwiped) add(lv *lvm2.LV, err error) {
	if err != nil {
		u.is[lv.ID], u.why = true, append(u.why, err)
	}
}

// stuckAfter is in how many rounds in a row trash must have failed to be wiped, for longer
// than busyLimit: a device that is open in passing is no news.
const stuckAfter = 2

// failing is trash that could not be wiped in the last rounds.
type failing struct {
	rounds int
	since  time.Time
	told   bool // to those who wait for room
}

func (f failing) stuck() bool { return f.rounds >= stuckAfter && time.Since(f.since) > busyLimit }

// stuck says whether a piece of trash cannot be wiped, as far as the wiper knows.
func (w *wiper) stuck(id lvm2.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failures[id].stuck()
}

// note notes which trash a round could not wipe.
func (w *wiper) note(unwiped map[lvm2.ID]bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now, news := map[lvm2.ID]failing{}, false
	for id := range unwiped {
		f := w.failures[id]
		if f.rounds++; f.rounds == 1 {
			f.since = time.Now()
		}
		news = news || f.stuck() && !f.told
		f.told = f.stuck()
		now[id] = f
	}
	if w.failures = now; news {
		w.tell()
	}
}

// lookAgain has those who wait for room look again: some became free, or is not coming.
func (w *wiper) lookAgain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tell()
}

// tell does what lookAgain does. The mutex is held.
func (w *wiper) tell() {
	close(w.next)
	w.next = make(chan struct{})
}
