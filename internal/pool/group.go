package pool

import (
	"context"
	"sync"
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// group is the volume group as this process works on it: its metadata, which one
// goroutine writes (committer); whose turn it is to work on a thing (keys); and the
// work that is under way, for which Close waits.
type group struct {
	name   string // the pool's
	vgName string
	host   lvm2.Host
	store  *lvm2.Store // the committer's, as maps is; Problems and Stale may be asked by all
	log    klog.Logger
	facts  *facts

	ctx     context.Context // ends when the pool is closed
	cancel  context.CancelFunc
	changes chan *change
	urgent  chan *change
	lonely  chan *change
	stopped chan struct{} // closed when the committer has ended

	current  atomic.Pointer[view]  // of the last read or commit; a view never changes
	broken   atomic.Pointer[error] // why the last read failed, if it did
	changed  atomic.Bool           // somebody else changed the metadata, and that was not looked at yet
	foreign  atomic.Uint64         // how often somebody else did
	textMost atomic.Uint64         // bytes that the group's metadata may have

	mapped func(v *view) ([]mapping, error) // asks the kernel what its devices map of the group
	maps   []mapping                        // what it said, asked at most once a batch

	// settled is told that a change is on the disk and its act has ended, whether or
	// not that failed. The committer calls it: it must wait for nothing.
	settled func(before, after *view)

	keys keyed

	mu     sync.Mutex // guards closed, and that work is not added to after that; no other lock is taken meanwhile
	closed bool
	work   sync.WaitGroup // operations and background loops
}

// begin registers a piece of background work; false once the pool is closed.
func (g *group) begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.work.Add(1)
	return true
}
