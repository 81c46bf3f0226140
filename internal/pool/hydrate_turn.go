package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Windows take turns, so that the disks see a single stream of copies. There is a
// second turn for forks whose hydration lets held writers continue. These forks
// need not wait for another fork's slow disk.
const (
	hydrationTurn = "hydration"
	urgentTurn    = "urgent hydration"
	stallLimit    = 5 * time.Second // time without a copied region, after which others get the turn
)

// errTurn says that the hydration must take another turn now.
var errTurn = errors.New("the hydration became urgent")

// turn waits until a window of lv may be copied. The turn ends when pass is called;
// pass may be called twice.
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

// waiting returns a context that ends when a hydration may have become urgent.
func (h *hydrator) waiting(ctx context.Context, j *hydration) (context.Context, context.CancelFunc) {
	waiting, cancel := context.WithCancel(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	j.waiting = cancel
	return waiting, cancel
}

// urgent reports whether held writers wait for lv's hydration: writers to lv, or to
// a volume that lv reads through.
func (h *hydrator) urgent(lv string) bool {
	v := h.pool.current.Load()
	return slices.ContainsFunc(v.Family(lv), func(name string) bool {
		o := v.VolumeByLV(name)
		if o == nil {
			return false
		}
		return h.pool.facts.holding.has(o.LV.ID)
	})
}

// hurry makes hydrations that wait for their turn check whether they are urgent.
func (h *hydrator) hurry() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, j := range h.jobs {
		j.waiting()
	}
}
