package pool

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// How stores with a gate grow. Nothing is lost if a store grows late: its writers
// wait. So these figures are a matter of speed alone.
const (
	gateLook   = 100 * time.Millisecond // between two looks at a store
	growLook   = 10 * time.Millisecond  // and while it grows
	leastStore = 4 * size.MiB           // of a new snapshot
	mostFirst  = 64 * size.MiB
	firstShare = 64 // of a volume is that of a new snapshot's store, between these
	mostStep   = size.GiB
)

// stepFrom is by how much a store of that size grows: it doubles.
func (p *Pool) stepFrom(have size.Bytes) size.Bytes {
	return max(min(have, mostStep), p.config.StoreStep, leastStore)
}

// tend has a store with a gate extended when half of it, or all but a step, is in use,
// and returns when to look again.
func (m *monitor) tend(v *view, s *filling, status dm.SnapshotStatus) time.Duration {
	lv := v.vg.LVByID(s.lv.ID)
	if lv == nil {
		return gateLook
	}
	have := sectors(v, lv.Size())
	if status.Total < s.most && status.Total >= have {
		m.caretaker.attend(s.of, "gate", attendPause, func(ctx context.Context, _ string) error { // lvm2 has given its device another table
			_, _, err := m.mapStore(ctx, v, lv, storeGrown)
			return err
		})
	}
	waits := status.Used > have
	m.noteWaiting(s, waits)
	ahead := min(have/2, m.stepFrom(have.Bytes()).Sectors())
	if have >= s.most || have-min(have, status.Used) > ahead {
		m.facts.cramped.drop(s.lv.ID)
		return gateLook
	}
	why, tried := m.facts.cramped.get(s.lv.ID)
	if waits && tried && (errors.Is(why, ErrNoSpace) || time.Since(s.waits) > growLimit) {
		m.noRoom(v, s.store)
	}
	if v.freeFor(s.lv).size() > 0 || len(v.trash) > 0 {
		m.startGate(v, s, waits)
		return growLook
	}
	if !tried {
		m.facts.cramped.put(s.lv.ID, ErrNoSpace)
		return growLook
	}
	return gateLook
}

// startGate has a store extended in the background.
func (m *monitor) startGate(v *view, s *filling, waits bool) {
	g := &growth{store: s.lv.ID, more: m.stepFrom(v.bytesOf(v.vg.LVByID(s.lv.ID))), must: waits, done: make(chan struct{})}
	if _, first := m.facts.growing.claim(g.store, g); first {
		m.background(func(ctx context.Context) { m.grow(ctx, g) })
	}
}

// noRoom decides for those who wait for room that is not there. If the store must not
// be lost they go on waiting; else the kernel drops the snapshot.
func (p *Pool) noRoom(v *view, s *store) {
	if p.kept(v, s) {
		p.hydrator.hurry()
		return
	}
	if err := p.alone(p.ctx, s.lv.ID, func() error { return p.failGate(v, s.lv) }); err != nil {
		p.log.Error(err, "Letting writers go on whose snapshot finds no room", "store", s.lv.Name)
	}
}

// noteWaiting notes whether somebody waits at the gate of a store, for health and for
// hydration, which may be what ends it.
func (p *Pool) noteWaiting(s *filling, waits bool) {
	volume := s.of.lv.ID
	switch {
	case !waits:
		s.waits = time.Time{}
		if now, _ := p.facts.waiting.get(volume); now == s.lv.ID {
			p.facts.waiting.drop(volume)
		}
	case s.waits.IsZero():
		s.waits = time.Now()
		p.facts.waiting.put(volume, s.lv.ID)
	}
}

// writersWait says whether writers of a volume wait, held or at a gate, for room.
func (p *Pool) writersWait(volume lvm2.ID) bool {
	if p.facts.holding.has(volume) {
		return true
	}
	store, waits := p.facts.waiting.get(volume)
	return waits && p.facts.cramped.has(store)
}

// growOnce extends stores a last time before the pool is closed, those that have
// room for less than a step.
func (p *Pool) growOnce() {
	v := p.current.Load()
	if v == nil || p.ctx.Err() != nil || p.dm == nil || !p.config.Gate {
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, leaveLimit)
	defer cancel()
	var running sync.WaitGroup
	for _, o := range v.volumes {
		l := o.live()
		if l == nil || l.lost || o.theirs() != "" || !p.hasGate(l.store(o)) {
			continue
		}
		status, err := p.snapshotStatus(v.snapDevice(l.lv).name)
		have := v.bytesOf(l.lv)
		if step := p.stepFrom(have); err != nil || status.Invalid || have-min(have, status.Used.Bytes()) >= step {
			continue
		}
		g := &growth{store: l.lv.ID, more: p.stepFrom(have), done: make(chan struct{})}
		if _, first := p.facts.growing.claim(g.store, g); !first {
			continue
		}
		running.Go(func() {
			defer p.facts.growing.drop(g.store)
			if err := p.growStore(ctx, g); err != nil {
				p.log.Error(err, "A store was not extended before the driver leaves")
			}
		})
	}
	running.Wait()
}

// openGates opens the gates of stores that may be lost, so that no volume waits for
// a driver that is not there. Nothing else works on the pool any more.
func (p *Pool) openGates() {
	v := p.current.Load()
	if v == nil || p.config.WaitForDriver || p.dm == nil || !p.config.Gate {
		return
	}
	err := p.eachGate(func(e dm.ListEntry, id lvm2.ID, _ bool) error {
		s := v.storeOf(id)
		table, err := p.dm.Table(e.Name)
		if err != nil || s != nil && p.kept(v, s) || !(&gate{table: table}).closed() {
			return err
		}
		return p.resumeGate(e.Name)
	})
	if err != nil {
		p.log.Error(err, "Writers may wait until the pool is opened again")
	}
}
