package pool

import (
	"maps"
	"sync"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// facts is what only this process knows of the kernel: it is not on the disks, and
// device-mapper does not tell it. It ends with the process; repair does without it.
//
// One mutex guards all of it. It is held for the look-up alone: no other lock is
// taken and nothing is waited for meanwhile.
type facts struct {
	mu sync.Mutex

	growing    noted[lvm2.ID, *growth]      // the stores that are being extended
	cramped    noted[lvm2.ID, error]        // why a store could not be extended
	holding    noted[lvm2.ID, *growth]      // the volumes whose writers are held because a store must not be lost
	failing    noted[lvm2.ID, error]        // why a volume's file system could not be frozen
	frozen     noted[lvm2.ID, *frozen]      // the volumes that are held still for a cut
	unsettled  noted[lvm2.ID, bool]         // the volumes whose devices could not be brought in line
	boundaries noted[lvm2.ID, size.Sectors] // what a frozen layer used at the next cut, as long as it is not on the disk
	flats      noted[lvm2.ID, time.Time]    // flat stores that nobody has read by yet: when they were written, zero until then
	tables     noted[lvm2.ID, flatTable]    // what the devices of flat stores were loaded with
	steep      noted[lvm2.ID, error]        // why an old snapshot of a volume is read by more devices than it should be
	missed     noted[string, time.Time]     // when a target of the kernel was last found missing, by its name
	inUse      []mapping                    // what was free and mapped when the kernel was last asked
	swept      bool                         // devices of trash went since takeSwept was called
}

func newFacts() *facts {
	f := &facts{}
	f.growing.mu, f.cramped.mu, f.holding.mu, f.failing.mu = &f.mu, &f.mu, &f.mu, &f.mu
	f.frozen.mu, f.unsettled.mu, f.boundaries.mu, f.missed.mu = &f.mu, &f.mu, &f.mu, &f.mu
	f.flats.mu, f.steep.mu, f.tables.mu = &f.mu, &f.mu, &f.mu
	return f
}

// setInUse notes which extents are free by the metadata and mapped by a device.
func (f *facts) setInUse(all []mapping) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inUse = all
}

// stillInUse returns what setInUse was last told. The caller must not change it.
func (f *facts) stillInUse() []mapping {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.inUse
}

// noteSwept notes that a device of trash went, so that the trash may be wiped now.
func (f *facts) noteSwept() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.swept = true
}

// takeSwept returns whether noteSwept was called since the last time.
func (f *facts) takeSwept() (was bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	was, f.swept = f.swept, false
	return was
}

// noted is one kind of facts. Its methods may be called concurrently.
type noted[K comparable, V any] struct {
	mu *sync.Mutex
	of map[K]V
}

func (n *noted[K, V]) get(k K) (v V, known bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	v, known = n.of[k]
	return v, known
}

func (n *noted[K, V]) has(k K) bool {
	_, known := n.get(k)
	return known
}

func (n *noted[K, V]) put(k K, v V) {
	n.swap(k, v)
}

// swap puts v and reports whether something was there before.
func (n *noted[K, V]) swap(k K, v V) (was bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, was = n.of[k]
	n.set(k, v)
	return was
}

// claim puts v where nothing is and returns what is there then. first reports whether that is v.
func (n *noted[K, V]) claim(k K, v V) (now V, first bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now, known := n.of[k]; known {
		return now, false
	}
	n.set(k, v)
	return v, true
}

// set puts v. The mutex is held.
func (n *noted[K, V]) set(k K, v V) {
	if n.of == nil {
		n.of = map[K]V{}
	}
	n.of[k] = v
}

func (n *noted[K, V]) drop(k K) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.of, k)
}

// keep drops all of which needed does not say that it is. needed must not ask facts.
func (n *noted[K, V]) keep(needed func(K) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.of, func(k K, _ V) bool { return !needed(k) })
}

// count returns how many there are.
func (n *noted[K, V]) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.of)
}
