package sockets

import (
	"net"
	"slices"
	"sync"
)

// Newest limits how many connections are open: a connection beyond the limit closes
// the oldest. So a peer that opens many idle connections neither takes much memory nor
// keeps other peers out. A peer loses its connection only if so many new connections
// arrive before it is served. Newest is safe for concurrent use.
type Newest struct {
	max int

	mu    sync.Mutex
	conns []net.Conn // oldest first
}

// NewNewest returns an empty set for at most that many connections.
func NewNewest(most int) *Newest { return &Newest{max: most} }

// Add adds an open connection.
func (n *Newest) Add(c net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.conns) == n.max {
		drop(n.conns[0])
		n.conns = slices.Delete(n.conns, 0, 1)
	}
	n.conns = append(n.conns, c)
}

// Remove forgets a connection. It does nothing if the connection is not in the set.
func (n *Newest) Remove(c net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(n.conns, c); i >= 0 {
		n.conns = slices.Delete(n.conns, i, i+1)
	}
}

// drop closes a connection, and discards what the kernel still holds for a peer that
// does not read.
func drop(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // Close follows in any case
	}
	_ = c.Close() // its user sees the error
}
