package worker

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/powercut/history"
)

const (
	admins       = 3 // concurrent operations
	mostVolumes  = 7
	mostShowing  = 3 // additional volumes that show snapshots
	mostOnVolume = 5 // snapshots
	mostSnaps    = 24
	extent       = size.MiB
	largest      = 8 * extent
	tooLarge     = 512 * extent // larger than the pool
	mostOps      = 20           // that begin before the driver is killed
)

// weights has how often each operation is tried, relative to the others.
var weights = []struct {
	op     history.Op
	weight int
}{
	{history.Create, 14}, {history.Restore, 12}, {history.Clone, 5}, {history.Activate, 14}, {history.Deactivate, 5},
	{history.Expand, 7}, {history.Snapshot, 22}, {history.Drop, 16}, {history.Delete, 6},
	{history.Rollback, 8}, {history.LVM2Create, 5}, {history.LVM2Snapshot, 2}, {history.Adopt, 8},
}

// load runs the mixed load until stop is closed.
func (s *session) load(stop <-chan struct{}) {
	var idle []uint64 // active volumes without a writer
	s.log.View(func(m *history.Model) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, o := range m.Objects {
			if o.Active == history.Active && !o.ReadOnly && (!o.FS || o.Content.Formatted) && s.writers[o.ID] == nil {
				idle = append(idle, o.ID)
			}
		}
	})
	for _, id := range idle {
		s.startWriter(id)
	}
	var wg sync.WaitGroup
	for range admins {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if s.step() == interrupted {
					return
				}
				time.Sleep(time.Duration(s.random.n(8)) * time.Millisecond)
			}
		})
	}
	wg.Wait()
}

// loadUntilKilled runs the load and kills the driver meanwhile, usually during
// an operation.
func (s *session) loadUntilKilled() {
	s.log.End(history.Event{Kind: history.Load})
	stop, ended := make(chan struct{}), make(chan struct{})
	select {
	case <-s.begun: // drops an earlier operation
	default:
	}
	go func() { s.load(stop); close(ended) }()
	if op, in := s.awaitOps(s.random.n(mostOps)), s.random.n(4) > 0; in {
		s.mu.Lock()
		took := s.took[op]
		s.mu.Unlock()
		u := float64(s.random.n(1000)) / 1000
		time.Sleep(time.Duration(u * u * 1.25 * float64(took))) // early moments are likelier, because the commit comes early
	} else {
		time.Sleep(time.Duration(s.random.n(100)) * time.Millisecond)
	}
	close(stop)
	s.kill()
	<-ended
}

// awaitOps waits until more than n operations have begun, and returns the last.
// It stops waiting if none begins for a second.
func (s *session) awaitOps(n int) (op history.Op) {
	for ; n >= 0; n-- {
		select {
		case op = <-s.begun:
		case <-time.After(time.Second):
			return op
		}
	}
	return op
}

// step performs one random operation.
func (s *session) step() outcome {
	e, ok := s.choose()
	if !ok {
		return refused
	}
	defer s.release(claims(e))
	if e.Op == history.Delete || e.Op == history.Deactivate {
		s.stopWriter(e.ID)
	}
	e, out := s.call(e, func(m *history.Model, e *history.Event) bool {
		switch e.Op {
		case history.Rollback:
			return m.Objects[e.From] != nil
		case history.Create, history.Restore, history.Clone, history.Snapshot:
			if e.From != 0 && m.Objects[e.From] == nil {
				return false
			}
			e.ID, e.Name = m.Next(), s.name(m, e.Op == history.Snapshot)
		case history.LVM2Create, history.LVM2Snapshot:
			s.nameTheirs(m, e)
		}
		return true
	})
	switch {
	case e.Op == history.LVM2Create && out == done:
		return s.snapshotsByCommand(e.ID)
	case e.Op == history.Activate && out == done:
		return s.use(e.ID)
	}
	return out
}

// use formats a volume that needs a file system, and begins to write to it.
func (s *session) use(id uint64) outcome {
	var readOnly, unformatted bool
	s.log.View(func(m *history.Model) {
		o := m.Objects[id]
		readOnly, unformatted = o.ReadOnly, o.FS && !o.Content.Formatted
	})
	if readOnly {
		return done
	}
	if unformatted {
		if _, out := s.call(history.Event{Op: history.Format, ID: id}, nil); out != done {
			return out
		}
	}
	s.startWriter(id)
	return done
}

// choose picks an operation that is possible, and claims its objects.
func (s *session) choose() (e history.Event, ok bool) {
	total := 0
	for _, w := range weights {
		total += w.weight
	}
	k := s.random.n(total)
	for _, w := range weights {
		if k -= w.weight; k < 0 {
			e.Op = w.op
			break
		}
	}
	s.log.View(func(m *history.Model) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if ok = s.target(m, &e); ok {
			for _, id := range claims(e) {
				s.busy[id] = true
			}
		}
	})
	return e, ok
}

// claims returns the objects that no other operation may work on: the object
// that is changed, or the volume that is cut. A snapshot may be dropped while
// it is being restored, but not while a volume is rolled back to it. The
// rollback finds the snapshot by the name of its logical volume, which may
// belong to another snapshot by then.
func claims(e history.Event) []uint64 {
	switch {
	case e.Op == history.Restore || e.Op == history.Create || e.Op == history.LVM2Create:
		return nil
	case e.Op == history.Rollback:
		return []uint64{e.ID, e.From}
	case e.From != 0:
		return []uint64{e.From}
	}
	return []uint64{e.ID}
}

func (s *session) release(ids []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		delete(s.busy, id)
	}
}

// target picks the object for e's operation. It returns false if there is none.
func (s *session) target(m *history.Model, e *history.Event) bool {
	volumes, snapshots := 0, 0
	on := map[uint64]int{}
	for _, o := range m.Objects {
		if o.Snapshot {
			snapshots++
			on[o.Of]++
		} else {
			volumes++
		}
	}
	pick := func(fits func(o *history.Object) bool) *history.Object {
		var all []*history.Object
		for _, id := range slices.Sorted(maps.Keys(m.Objects)) {
			if o := m.Objects[id]; o.Certain && !s.busy[id] && o.Theirs == onTheirs(e.Op) && fits(o) {
				all = append(all, o)
			}
		}
		if len(all) == 0 {
			return nil
		}
		return all[s.random.n(len(all))]
	}
	volume := func(o *history.Object) bool { return !o.Snapshot }
	own := func(o *history.Object) bool { return volume(o) && !o.Shows() } // a volume with blocks of its own
	var o *history.Object
	switch e.Op {
	case history.LVM2Create, history.LVM2Snapshot, history.Adopt:
		return s.options.alone && targetTheirs(m, e, volumes, pick)
	case history.Create:
		e.Size, e.FS = size.Bytes(2+s.random.n(4))*extent, s.random.n(2) == 0
		if s.random.n(30) == 0 {
			e.Size = tooLarge
		}
		return volumes < mostVolumes
	case history.Restore, history.Clone:
		o = pick(func(o *history.Object) bool {
			return o.Snapshot == (e.Op == history.Restore) && (o.Snapshot || own(o)) && (volumes < mostVolumes || o.FS && volumes < mostVolumes+mostShowing)
		})
		if o != nil {
			e.From, e.FS, e.Size = o.ID, o.FS, o.Size
			// No volume can show a snapshot of a block volume that was never
			// wiped, and a read-only volume needs a file system.
			if kind := s.random.n(3); o.FS && (kind < 2 || volumes >= mostVolumes) {
				e.ReadOnly = kind == 0 && o.Content.Formatted
				e.Transient = !e.ReadOnly
			} else {
				e.Size = min(o.Size+size.Bytes(s.random.n(2))*extent, max(largest, o.Size))
			}
		}
		return o != nil
	case history.Snapshot:
		o = pick(func(o *history.Object) bool { return own(o) && on[o.ID] < mostOnVolume && snapshots < mostSnaps })
		if o != nil {
			e.From, e.FS, e.Size = o.ID, o.FS, o.Size
		}
		return o != nil
	case history.Rollback:
		o = pick(func(o *history.Object) bool {
			of := m.Objects[o.Of]
			return o.Snapshot && of != nil && of.Certain && own(of) && !s.busy[of.ID] && of.Active == history.Inactive
		})
		if o != nil {
			e.ID, e.From, e.Size, e.FS = o.Of, o.ID, m.Objects[o.Of].Size, o.FS
		}
		return o != nil
	case history.Expand:
		o = pick(func(o *history.Object) bool { return own(o) && o.Size < largest })
		if o != nil {
			e.Size = o.Size + extent
		}
	case history.Activate:
		o = pick(func(o *history.Object) bool { return volume(o) && o.Active == history.Inactive })
	case history.Deactivate:
		o = pick(func(o *history.Object) bool { return volume(o) && o.Active == history.Active })
	case history.Delete:
		o = pick(volume)
	case history.Drop:
		o = pick(func(o *history.Object) bool { return o.Snapshot })
	}
	if o != nil {
		e.ID = o.ID
	}
	return o != nil
}
