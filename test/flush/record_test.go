//go:build kernel

package flush

import (
	"bytes"
	"sync"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// kind is the kind of an event.
type kind uint8

const (
	write   kind = iota
	through      // a write with FUA: it is durable by itself
	discard
	flush // all earlier writes and discards of this disk are durable
)

const historyDisk = -1

// event is what a disk was asked to do.
type event struct {
	Disk int // historyDisk for the history
	Kind kind
	At   int64
	Len  int64
	Data []byte // nil for zeroes
}

// record has what several disks were asked to do, in one order.
type record struct {
	mu     sync.Mutex
	events []event
	ended  bool // what comes now is not recorded
}

func (r *record) add(e event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended {
		r.events = append(r.events, e)
	}
}

// end ends the record and returns the events. The disks continue to work.
func (r *record) end() []event {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	return r.events
}

// recorded is a disk that works, and records its writes and flushes.
type recorded struct {
	*memory
	to *record
	n  int // the number of the disk in the record
}

var zeroes = make([]byte, 4*size.MiB)

func (d *recorded) write(p []byte, at int64, fua bool) error {
	e := event{Disk: d.n, Kind: write, At: at, Len: int64(len(p)), Data: p}
	if fua {
		e.Kind = through
	}
	if len(p) <= len(zeroes) && bytes.Equal(p, zeroes[:len(p)]) {
		e.Data = nil
	}
	d.to.add(e)
	return d.memory.write(p, at, fua)
}

func (d *recorded) flush() error {
	d.to.add(event{Disk: d.n, Kind: flush})
	return nil
}

func (d *recorded) discard(at, n int64) error {
	d.to.add(event{Disk: d.n, Kind: discard, At: at, Len: n})
	return d.memory.discard(at, n)
}
