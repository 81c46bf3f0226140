package pool

import (
	"maps"
	"sync"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// facts holds the knowledge of the kernel that only this process has: it is not on the
// disks, and device-mapper does not report it. It is lost when the process ends, so
// repair does not rely on it.
//
// One mutex guards all facts. Its holder takes no other lock and does not wait.
type facts struct {
	mu sync.Mutex

	growing    noted[lvm2.ID, *growth]      // stores that are being extended
	cramped    noted[lvm2.ID, error]        // stores that could not be extended, with the error
	holding    noted[lvm2.ID, *growth]      // volumes whose writers are held to save a store
	failing    noted[lvm2.ID, error]        // volumes whose file system could not be frozen, with the error
	frozen     noted[lvm2.ID, *frozen]      // volumes that are frozen for a cut
	unsettled  noted[lvm2.ID, bool]         // volumes whose devices could not be brought in line
	boundaries noted[lvm2.ID, size.Sectors] // size used by a frozen layer at the next cut, until it is recorded on the disk
	flats      noted[lvm2.ID, time.Time]    // flat stores that nobody has read yet, with the time of writing; zero until written
	tables     noted[lvm2.ID, flatTable]    // loaded tables of the devices of flat stores
	steep      noted[lvm2.ID, error]        // volumes whose old snapshots need more devices than they should, with the reason
	missed     noted[string, time.Time]     // kernel targets by name, with the time at which each was last found missing
	inUse      []catalog.Mapping            // extents that were free but mapped when the kernel was last asked
	swept      bool                         // devices of trash were removed since takeSwept was last called
}

func newFacts() *facts {
	f := &facts{}
	f.growing.mu, f.cramped.mu, f.holding.mu, f.failing.mu = &f.mu, &f.mu, &f.mu, &f.mu
	f.frozen.mu, f.unsettled.mu, f.boundaries.mu, f.missed.mu = &f.mu, &f.mu, &f.mu, &f.mu
	f.flats.mu, f.steep.mu, f.tables.mu = &f.mu, &f.mu, &f.mu
	return f
}

// setInUse records the extents that are free in the metadata but mapped by a device.
func (f *facts) setInUse(all []catalog.Mapping) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inUse = all
}

// stillInUse returns the extents that setInUse last recorded. The caller must not change
// the slice.
func (f *facts) stillInUse() []catalog.Mapping {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.inUse
}

// noteSwept records that a device of trash was removed, so the trash can be wiped now.
func (f *facts) noteSwept() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.swept = true
}

// takeSwept reports whether noteSwept was called since the last call of takeSwept.
func (f *facts) takeSwept() (was bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	was, f.swept = f.swept, false
	return was
}

// noted is one kind of fact. Its methods may be called concurrently.
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

// swap puts v under k and reports whether k had a value before.
func (n *noted[K, V]) swap(k K, v V) (was bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, was = n.of[k]
	n.set(k, v)
	return was
}

// claim puts v under k if k has no value. It returns the value that k has then, and
// first reports whether this value is v.
func (n *noted[K, V]) claim(k K, v V) (now V, first bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now, known := n.of[k]; known {
		return now, false
	}
	n.set(k, v)
	return v, true
}

// set puts v under k. The caller holds the mutex.
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

// keep drops every key for which needed returns false. needed must not use facts.
func (n *noted[K, V]) keep(needed func(K) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.of, func(k K, _ V) bool { return !needed(k) })
}

// count returns the number of keys.
func (n *noted[K, V]) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.of)
}
