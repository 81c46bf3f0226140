package callmeta

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// ReservationTime is how long a node keeps a volume name for the controller
// that reserved it. It is also how far the nodes that one controller knows may lag
// behind the nodes that another controller knows.
const ReservationTime = 30 * time.Second

// ErrReserved: another controller has reserved the name, or the reservation has been
// replaced. A retry of the request reserves the name anew.
var ErrReserved = errors.New("retry later")

// Reservations are the volume names that are reserved on one node. Before a
// controller creates a volume whose node it may choose, it reserves the name on
// every node that could have the volume. Only one controller at a time has a name. Its
// next reservation replaces its former one, so that an abandoned request that arrives
// late creates nothing. The caller ensures that nobody creates a volume with a name
// while the name is being reserved.
//
// Reservations exist only in memory. A restart forgets them, which is safe: the node
// then refuses requests with earlier reservations. Reservations is safe for concurrent
// use.
type Reservations struct {
	mu    sync.Mutex
	names map[string]reservation
}

type reservation struct {
	of    string // "<who>/<which>"
	until time.Time
}

// Take reserves a name. Errors: ErrReserved while another controller has the name.
func (r *Reservations) Take(name, of string, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, x := range r.names {
		if now.After(x.until) {
			delete(r.names, n)
		}
	}
	if x, reserved := r.names[name]; reserved && holder(x.of) != holder(of) {
		return fmt.Errorf("volume name %q is reserved by another controller for %v; %w", name, x.until.Sub(now).Round(time.Second), ErrReserved)
	}
	if r.names == nil {
		r.names = map[string]reservation{}
	}
	r.names[name] = reservation{of: of, until: now.Add(ReservationTime)}
	return nil
}

// Check checks that a reservation is the last that was taken for the name. A
// reservation whose time is over still counts until another controller takes the name.
// Errors: ErrReserved.
func (r *Reservations) Check(name, of string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.names[name].of != of {
		return fmt.Errorf("the reservation of volume name %q is no longer valid; %w", name, ErrReserved)
	}
	return nil
}

func holder(of string) string {
	who, _, _ := strings.Cut(of, "/")
	return who
}
