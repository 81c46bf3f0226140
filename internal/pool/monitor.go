package pool

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	slowestLook = 500 * time.Millisecond // longest pause between two looks at a live store
	fastestLook = 2 * time.Millisecond
	surveyPause = 20 * time.Millisecond // shortest pause between two surveys of which stores there are

	asksAtOnce  = 16                    // number of stores for which the kernel is asked at a time
	askPatience = 20 * time.Millisecond // a question that takes longer does not count any more
)

// storeGuard is the state that the monitor shares with others.
type storeGuard struct {
	fastest  atomic.Uint64 // highest rate seen, in sectors per second: see peak
	brakes   timings       // times for which writers were held while stores grew
	lookSoon chan struct{} // wakes the monitor after a change in the kernel

	// keep reports whether a volume's writers must wait rather than lose its live
	// layer for lack of room, because forks read through that layer.
	keep func(v *view, o *catalog.Volume) bool
}

// monitor watches the stores that the kernel fills. It starts their growth before
// they are full, and records the loss of stores that the kernel had to drop. It has
// one goroutine. Each question to the kernel has a goroutine of its own: the kernel
// does not tell how full a store is while it waits for the store's disk, and the
// other stores must not wait for that disk.
type monitor struct {
	pool     *Pool
	stores   map[lvm2.ID]*filling  // by their layer
	asked    map[lvm2.ID]time.Time // stores for which the kernel has not answered yet, and since when
	answers  chan answer
	status   func(device string) (dm.SnapshotStatus, error)
	seen     *view // view at the last survey
	stale    bool  // the kernel's devices have changed since the last survey
	surveyed time.Time
	peak     rate // at the last look
}

// answer is the kernel's answer to the question how full a store is.
type answer struct {
	store  lvm2.ID
	status dm.SnapshotStatus
	err    error
}

// filling is a store that the kernel fills, with its rate.
type filling struct {
	*catalog.Store
	snap, cow device
	most      size.Sectors // size of the store at which it can hold every chunk
	base      sample
	rate      rate
	due       time.Time
}

// watchLoop runs the monitor.
func (p *Pool) watchLoop(ctx context.Context) {
	m := monitor{pool: p, stores: map[lvm2.ID]*filling{}, asked: map[lvm2.ID]time.Time{}, answers: make(chan answer, asksAtOnce), status: p.snapshotStatus}
	for timer := time.NewTimer(0); ; {
		select {
		case <-timer.C:
		case a := <-m.answers:
			for m.take(a); len(m.answers) > 0; {
				m.take(<-m.answers)
			}
		case <-p.lookSoon:
			m.stale = true
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Reset(time.Until(m.look(ctx, time.Now())))
	}
}

// lookAgain tells the monitor that the kernel's devices have changed.
func (p *Pool) lookAgain() {
	select {
	case p.lookSoon <- struct{}{}:
	default:
	}
}

// look asks for the stores that are due, and returns when to look again.
func (m *monitor) look(ctx context.Context, now time.Time) time.Time {
	// Use the current view, even if it is stale: the stores that the kernel fills
	// must be watched also while the metadata cannot be read.
	v := m.pool.current.Load()
	m.stale = m.stale || v != m.seen
	survey := m.surveyed.Add(slowestLook)
	if m.stale {
		survey = m.surveyed.Add(surveyPause)
	}
	if !now.Before(survey) {
		m.survey(v, now)
		survey = now.Add(slowestLook)
	}
	next, peak := survey, m.pool.peak()
	higher := peak > m.peak // the stores' next looks are for a lower peak
	m.peak = peak
	asking := 0
	for _, since := range m.asked {
		if now.Sub(since) < askPatience {
			asking++
		}
	}
	for id, s := range m.stores {
		if higher {
			s.due = now
		}
		if _, asked := m.asked[id]; asked {
			continue // take sets when it is due
		}
		due := s.due
		switch {
		case now.Before(due):
		case asking < asksAtOnce:
			asking++
			m.ask(ctx, id, s.snap.name, now)
			continue
		default:
			due = now.Add(askPatience) // or as soon as one is answered
		}
		if due.Before(next) {
			next = due
		}
	}
	return next
}

// ask asks the kernel how full a store is.
func (m *monitor) ask(ctx context.Context, id lvm2.ID, name string, now time.Time) {
	m.asked[id] = now
	go func() {
		status, err := m.status(name)
		select {
		case m.answers <- answer{id, status, err}:
		case <-ctx.Done():
		}
	}()
}

// take checks the store that the kernel has answered for.
func (m *monitor) take(a answer) {
	delete(m.asked, a.store)
	if s := m.stores[a.store]; s != nil {
		s.due = time.Now().Add(m.check(m.pool.current.Load(), s, a.status, a.err))
	}
}

// survey finds the stores that the kernel fills: those of live layers, and, while a
// cut or an adoption is carried out, those of other layers that still lie on the
// volume's blocks.
func (m *monitor) survey(v *view, now time.Time) {
	has, err := m.pool.allUUIDs()
	if err != nil {
		m.pool.log.Error(err, "Failed to list the kernel's devices")
		return
	}
	m.seen, m.stale, m.surveyed = v, false, now
	former := m.stores
	m.stores = map[lvm2.ID]*filling{}
	for _, o := range v.Volumes.All() {
		if !o.Merging && len(o.Layers) > 0 && has[v.realDevice(o.LV).uuid] {
			for _, l := range o.Layers {
				snap := v.snapDevice(l.LV)
				if l.Lost || l.Snap == nil && (!has[snap.uuid] || !m.pool.onBlocks(v, o, snap)) {
					continue
				}
				m.watch(v, l.Store(o), former, now)
			}
		}
		if s := v.ForkStore(o); s != nil && has[m.pool.snapshotDevice(v, s).uuid] {
			m.watch(v, s, former, now)
		}
	}
	m.pool.facts.cramped.keep(func(id lvm2.ID) bool { return m.stores[id] != nil })
}

// watch adds a store to the watched stores.
func (m *monitor) watch(v *view, s *catalog.Store, former map[lvm2.ID]*filling, now time.Time) {
	f := &filling{Store: s, snap: m.pool.snapshotDevice(v, s), cow: v.cowDevice(s.LV), most: sectors(v, v.Largest(s)), due: now}
	if known := former[s.LV.ID]; known != nil {
		f.base, f.rate, f.due = known.base, known.rate, known.due
	}
	m.stores[s.LV.ID] = f
}

// onBlocks reports whether a frozen layer's device still lies on the volume's
// blocks.
func (p *Pool) onBlocks(v *view, o *catalog.Volume, d device) bool {
	info, err := p.find(d)
	if err != nil || info == nil || info.ReadOnly { // a read-only device is not filled
		return false
	}
	real, err := p.find(v.realDevice(o.LV))
	if err != nil || real == nil {
		return false
	}
	table, err := p.dm.Table(info.Name)
	if err != nil || len(table) != 1 {
		return false
	}
	t, ok := table[0].Target.(dm.Snapshot)
	return ok && t.Origin == real.Device
}

// check checks a store, and returns how long until the next check.
func (m *monitor) check(v *view, s *filling, status dm.SnapshotStatus, err error) time.Duration {
	if err != nil { // it has no device yet, or no longer
		m.pool.caretaker.catchUp(s.Of)
		return nextLook(sectors(v, s.LV.Size()), s.Chunk, m.pool.peak(), 0)
	}
	if status.Invalid && s.Fork {
		m.pool.caretaker.attend(s.Of, "revival", attendPause, m.pool.recoverFork)
		return slowestLook
	}
	if status.Invalid {
		layer := s.LV.ID
		m.pool.caretaker.attend(s.Of, "loss", growPause, func(ctx context.Context, _ string) error { return m.pool.recordLost(ctx, layer) })
		return slowestLook
	}
	if status.Overflow && s.Fork {
		// The kernel itself now refuses the writes that a brake would stop.
		if m.startGrowth(s, true, false); v.FreeFor(s.LV).Size() == 0 && !m.pool.shorter(v, s.Store) {
			m.pool.startHold(s.Store, s.rate)
		}
		m.pool.caretaker.attend(s.Of, "overflow", growPause, m.pool.recoverFork)
		return slowestLook
	}
	if status.Overflow || status.NoUsage || status.Total >= s.most {
		return slowestLook
	}
	seen := time.Now()
	s.rate, s.base = s.base.next(sample{status.Used, seen}, s.rate)
	m.pool.noteRate(s.rate)
	left, chunk := status.Total-min(status.Used, status.Total), s.Chunk
	grow, must := decide(left, status.Total, chunk, m.pool.peak(), s.rate, m.pool.config.small())
	if !grow {
		m.pool.facts.cramped.drop(s.LV.ID)
		return nextLook(left, chunk, m.pool.peak(), s.rate)
	}
	cramped := m.pool.facts.cramped.has(s.LV.ID)    // the last attempt to extend the store failed
	short := status.Total < sectors(v, s.LV.Size()) // the kernel did not follow an earlier growth
	free := short || v.FreeFor(s.LV).Size() > 0
	if free || m.pool.wipedSoon(v, v.GrowsOn(s.LV)) > 0 {
		// Brake or hold, not both: the volume could not be suspended while its
		// store is. The writers must not continue after a growth that is too short.
		hold := must && m.pool.kept(v, s.Store) && (cramped || v.growable(s.Store, status) < m.pool.lacks(v, s.Store, status, inFlight(chunk)))
		if !hold || !short || m.pool.scrubbing(s.Of.LV.Name) { // else the hold lengthens the device, and ends
			m.startGrowth(s, must, must && !hold)
		}
		if hold {
			m.pool.startHold(s.Store, s.rate)
		}
		return nextLook(left, chunk, m.pool.peak(), s.rate)
	}
	m.pool.facts.cramped.put(s.LV.ID, ErrNoSpace)
	if !m.pool.kept(v, s.Store) && m.pool.trimmedSoon(v, v.GrowsOn(s.LV)) == 0 {
		return slowestLook
	}
	if must && m.pool.kept(v, s.Store) {
		m.pool.startHold(s.Store, s.rate)
	}
	return nextLook(left, chunk, m.pool.peak(), s.rate)
}

// startGrowth begins to extend a store. If must is set, the growth takes all the
// free room that it needs. If brake is set, the store's writers are held until it
// has grown.
func (m *monitor) startGrowth(s *filling, must, brake bool) {
	g := m.pool.newGrowth(s.Store, s.rate)
	g.must = must
	now, first := m.pool.facts.growing.claim(g.storeID, g)
	if g = now; first {
		m.pool.background(func(ctx context.Context) { m.pool.grow(ctx, g) })
	}
	if brake && g.braked.CompareAndSwap(false, true) {
		m.pool.background(func(ctx context.Context) { m.pool.brake(ctx, g, s.cow) })
	}
}

func (p *Pool) newGrowth(s *catalog.Store, now rate) *growth {
	return &growth{storeID: s.LV.ID, more: growStep(p.config.StoreStep, s.Chunk, p.peak(), now), done: make(chan struct{})}
}
