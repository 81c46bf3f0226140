package pool

import (
	"context"
	"sync"
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// group is the volume group as this process works on it. It holds the metadata, which
// one goroutine (the committer) writes; the keys, which give out turns to work on a
// volume or a name; and the running work, for which Close waits.
type group struct {
	name    string // of the pool
	vgName  string
	host    lvm2.Host
	vgStore *lvm2.Store // only the committer uses it; other goroutines may call Problems and Stale
	log     klog.Logger
	facts   *facts

	ctx     context.Context // ends when the pool is closed
	cancel  context.CancelFunc
	changes chan *change
	urgent  chan *change
	lonely  chan *change
	stopped chan struct{} // closed when the committer has ended

	current  atomic.Pointer[view]  // of the last read or commit; a view never changes
	broken   atomic.Pointer[error] // the error of the last read, if it failed
	changed  atomic.Bool           // another process changed the metadata, and refresh has not handled the change yet
	foreign  atomic.Uint64         // number of changes by other processes
	textMost atomic.Uint64         // largest possible metadata text, in bytes

	mapped func(v *view) ([]catalog.Mapping, error) // asks the kernel which extents its devices map
	maps   []catalog.Mapping                        // the kernel's answer; only the committer uses it, and asks at most once a batch

	// settled is called after a change is on the disk and its act has ended, even if
	// the act failed. The committer calls settled, so settled must not block.
	settled func(before, after *view)

	keys keyed

	mu     sync.Mutex // guards closed; work is not added to once closed is set; its holder takes no other lock
	closed bool
	work   sync.WaitGroup // operations and background loops
}

// begin registers background work and reports whether the pool is still open.
func (g *group) begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.work.Add(1)
	return true
}
