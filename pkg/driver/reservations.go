package driver

import (
	"strings"
	"sync"
	"time"
)

// ReservationTime is how long a node keeps a volume name for the controller
// that reserved it. It is also how far a controller's knowledge of which nodes
// there are may lag behind that of another one.
const ReservationTime = 30 * time.Second

// reservations of volume names. Before a controller creates a volume whose
// node it may choose, it reserves the name on every node that could have the
// volume. A name is kept for one controller at a time; its next reservation
// takes the place of the one before, so that a request which was given up and
// arrives late creates nothing.
//
// A restart forgets them. That is safe: what was reserved before is refused.
type reservations struct {
	mu    sync.Mutex
	names map[string]reservation
}

type reservation struct {
	of    string // "<who>/<which>"
	until time.Time
}

// take reserves a name. ABORTED while another controller has it.
func (r *reservations) take(name, of string, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, x := range r.names {
		if now.After(x.until) {
			delete(r.names, n)
		}
	}
	if x, reserved := r.names[name]; reserved && holder(x.of) != holder(of) {
		return aborted("volume name %q is reserved by another controller for %v, ask again", name, x.until.Sub(now).Round(time.Second))
	}
	if r.names == nil {
		r.names = map[string]reservation{}
	}
	r.names[name] = reservation{of: of, until: now.Add(ReservationTime)}
	return nil
}

// check refuses a reservation that is not the last that was taken of the name.
// That its time is over does not matter as long as nobody else has taken it.
func (r *reservations) check(name, of string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.names[name].of != of {
		return aborted("the reservation of volume name %q is no longer valid, ask again", name)
	}
	return nil
}

func holder(of string) string {
	who, _, _ := strings.Cut(of, "/")
	return who
}
