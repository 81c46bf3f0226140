package router

import "sync"

// names has the volume names that this process is placing. It is safe for
// concurrent use.
type names struct {
	mu   sync.Mutex
	held map[string]bool
}

// begin takes a name until the caller calls end. ok is false if the name is taken.
func (n *names) begin(name string) (end func(), ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.held[name] {
		return nil, false
	}
	n.held[name] = true
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.held, name)
	}, true
}
