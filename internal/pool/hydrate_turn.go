package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Windows take turns: one at a time is copied, so that the disks see one stream.
// There is a second one where somebody's writes wait for a fork: that does not
// wait for what another one's disk is slow with.
const (
	hydrationTurn = "hydration"
	urgentTurn    = "urgent hydration"
	stallLimit    = 5 * time.Second // without a region copied, until others have their turn
)

// errTurn: the turn of a hydration is another one now.
var errTurn = errors.New("the hydration became urgent")

// turn waits until a window of lv may be copied. It is over when pass is called,
// which may be twice.
func (h *hydrator) turn(ctx context.Context, lv string, j *hydration) (pass func(), err error) {
	waiting, done := h.waiting(ctx, j)
	defer done()
	key := hydrationTurn
	if h.urgent(lv) {
		key = urgentTurn
	}
	release, err := h.pool.keys.lock(waiting, key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errTurn, err)
	}
	return sync.OnceFunc(release), nil
}

// waiting is the context of a wait that ends when something becomes urgent.
func (h *hydrator) waiting(ctx context.Context, j *hydration) (context.Context, context.CancelFunc) {
	waiting, cancel := context.WithCancel(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	j.waiting = cancel
	return waiting, cancel
}

// urgent says whether somebody's writes wait for lv to be hydrated: to it, or to
// what it reads through.
func (h *hydrator) urgent(lv string) bool {
	v := h.pool.current.Load()
	return slices.ContainsFunc(v.family(lv), func(name string) bool {
		o := v.volumeByLV(name)
		if o == nil {
			return false
		}
		held := h.pool.facts.holding.has(o.lv.ID)
		return held
	})
}

// hurry has those who wait for their turn look whether they are urgent.
func (h *hydrator) hurry() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, j := range h.jobs {
		j.waiting()
	}
}
