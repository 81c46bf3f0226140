package sockets

import (
	"net"
	"slices"
	"sync"
)

// Newest bounds how many connections are open, so that who opens many and says
// nothing keeps neither memory nor others out: one more closes the oldest. A
// peer that is served within the time in which that many come is served.
type Newest struct {
	max int

	mu    sync.Mutex
	conns []net.Conn // oldest first
}

// NewNewest returns an empty set of at most that many.
func NewNewest(most int) *Newest { return &Newest{max: most} }

// Add adds a connection that was opened.
func (n *Newest) Add(c net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.conns) == n.max {
		drop(n.conns[0])
		n.conns = slices.Delete(n.conns, 0, 1)
	}
	n.conns = append(n.conns, c)
}

// Remove forgets a connection, which may be forgotten already.
func (n *Newest) Remove(c net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(n.conns, c); i >= 0 {
		n.conns = slices.Delete(n.conns, i, i+1)
	}
}

// drop closes a connection, also what the kernel holds for a peer that does not read.
func drop(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // it is closed in any case
	}
	_ = c.Close() // its user sees the error
}
