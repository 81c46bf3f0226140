//go:build kernel

package flush

import (
	"math/rand/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// cached is a disk with a cache, to which recorded events happen again.
type cached struct {
	durable *memory
	last    []int32   // the event that a durable sector is of
	pending []pending // what the cache has, oldest first
	changed bool      // durable has changed since the caller cleared this
}

// pending is a write or discard that the disk may have done or not.
type pending struct {
	n int // the number of the event
	event
}

func newCached(first *memory, length size.Bytes) *cached {
	return &cached{durable: newMemory(first), last: make([]int32, length.Sectors())}
}

// happen makes event n happen to the disk.
func (d *cached) happen(n int, e event) {
	switch e.Kind {
	case write, discard:
		d.pending = append(d.pending, pending{n, e})
	case through:
		d.settle(pending{n, e})
	case flush:
		for _, p := range d.pending {
			d.settle(p)
		}
		d.pending = nil
	}
}

// settle makes a write durable, except for sectors of which the disk already
// has a later write.
func (d *cached) settle(p pending) {
	p.sectors(func(s int64, data []byte) {
		if d.last[s] <= int32(p.n) {
			d.last[s] = int32(p.n)
			_ = d.durable.write(data, s*size.SectorBytes, false)
		}
	})
	d.changed = true
}

// sectors calls f with the number and the content of each sector.
func (e event) sectors(f func(s int64, data []byte)) {
	for at := int64(0); at < e.Len; at += size.SectorBytes {
		data := zeroes[:size.SectorBytes]
		if e.Data != nil {
			data = e.Data[at : at+size.SectorBytes]
		}
		f((e.At+at)/size.SectorBytes, data)
	}
}

// loss says which of the pending writes a power cut leaves.
type loss int

const (
	all    loss = iota // the cache is lost
	none               // the cache was written just in time
	some               // each write is there or not
	torn               // each sector of a write is there or not
	one                // one disk loses its cache, the others write theirs
	losses             // how many there are
)

var lossNames = [...]string{"the cache is lost", "the cache was written", "a part of the cache was written", "a part of the sectors in the cache was written", "the cache of one disk is lost"}

func (l loss) String() string { return lossNames[l] }

// cut returns the content of the disk after a power cut. For the loss one the
// caller decides which disk that is. Writing to the result changes nothing here.
func (d *cached) cut(l loss, random *rand.Rand) *memory {
	m := newMemory(d.durable)
	for _, p := range d.pending {
		if l == all || l == some && random.IntN(2) == 0 {
			continue
		}
		whole := random.IntN(3) > 0 // most writes are not torn
		kept := random.IntN(2) == 0
		p.sectors(func(s int64, data []byte) {
			switch {
			case d.last[s] > int32(p.n): // the sector has been written again, durably
			case l == torn && whole && !kept, l == torn && !whole && random.IntN(2) == 0:
			default:
				_ = m.write(data, s*size.SectorBytes, false)
			}
		})
	}
	return m
}
