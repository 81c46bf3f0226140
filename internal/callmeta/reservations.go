package callmeta

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// ReservationTime is how long a node keeps a volume name for the controller
// that reserved it. It is also how far a controller's knowledge of which nodes
// there are may lag behind that of another one.
const ReservationTime = 30 * time.Second

// ErrReserved: the name is reserved by another controller, or no longer by
// this one. A repeated request reserves it anew.
var ErrReserved = errors.New("ask again")

// Reservations are the volume names that are reserved on one node. Before a
// controller creates a volume whose node it may choose, it reserves the name on
// every node that could have the volume. A name is kept for one controller at a
// time; its next reservation takes the place of the one before, so that a
// request which was given up and arrives late creates nothing. The caller sees
// to it that nothing is created under a name while it is being reserved.
//
// They live in memory. A restart forgets them, which is safe: what was reserved
// before is refused.
type Reservations struct {
	mu    sync.Mutex
	names map[string]reservation
}

type reservation struct {
	of    string // "<who>/<which>"
	until time.Time
}

// Take reserves a name. ErrReserved while another controller has it.
func (r *Reservations) Take(name, of string, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, x := range r.names {
		if now.After(x.until) {
			delete(r.names, n)
		}
	}
	if x, reserved := r.names[name]; reserved && holder(x.of) != holder(of) {
		return fmt.Errorf("volume name %q is reserved by another controller for %v: %w", name, x.until.Sub(now).Round(time.Second), ErrReserved)
	}
	if r.names == nil {
		r.names = map[string]reservation{}
	}
	r.names[name] = reservation{of: of, until: now.Add(ReservationTime)}
	return nil
}

// Check refuses a reservation that is not the last that was taken of the name,
// with ErrReserved. That its time is over does not matter as long as nobody
// else has taken it.
func (r *Reservations) Check(name, of string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.names[name].of != of {
		return fmt.Errorf("the reservation of volume name %q is not valid any more: %w", name, ErrReserved)
	}
	return nil
}

func holder(of string) string {
	who, _, _ := strings.Cut(of, "/")
	return who
}
