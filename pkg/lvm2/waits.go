package lvm2

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// waits are the transfers that have begun and not ended yet. Its methods may be
// called concurrently; those of nil do nothing.
type waits struct {
	mu   sync.Mutex
	next uint64
	open map[uint64]Wait
}

// Wait is a transfer that a device has not answered yet.
type Wait struct {
	Device string // its path
	Since  time.Time
}

// begin records a transfer until the returned function is called.
func (w *waits) begin(path string) (answered func()) {
	if w == nil {
		return func() {}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open == nil {
		w.open = map[uint64]Wait{}
	}
	id := w.next
	w.next++
	w.open[id] = Wait{path, time.Now()}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.open, id)
	}
}

// longer reports whether a transfer of the device has taken longer than limit.
func (w *waits) longer(path string, limit time.Duration) bool {
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.open {
		if x.Device == path && time.Since(x.Since) >= limit {
			return true
		}
	}
	return false
}

// openWaited opens a device whose transfers, and the opening itself, w records.
func openWaited(path string, flags int, w *waits) (*device, error) {
	defer w.begin(path)()
	d, err := openDevice(path, flags)
	if err == nil {
		d.waits = w
	}
	return d, err
}

// Waits returns the transfers of the metadata that have not ended yet, the oldest
// first. It omits devices that a search skipped, because nothing waits for them. It
// never waits for a device.
func (s *Store) Waits() []Wait {
	s.waits.mu.Lock()
	defer s.waits.mu.Unlock()
	all := make([]Wait, 0, len(s.waits.open))
	for _, w := range s.waits.open {
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b Wait) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Device, b.Device)) })
	return all
}
