package worker

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/powercut/history"
)

// session is the load and the verifier of one life of the machine. It stands
// for the pods and Kubernetes, so it survives the driver.
type session struct {
	options options
	log     *history.Log
	random  *random
	driver  *client
	killing atomic.Bool     // the driver is about to be killed
	begun   chan history.Op // operations that have just begun

	checks      sync.WaitGroup // the pool's own check, while it runs
	cancelCheck func()

	mu      sync.Mutex
	lvs     map[uint64]string  // names of logical volumes
	busy    map[uint64]bool    // objects that an operation is running on
	writers map[uint64]*writer // of active volumes
	took    map[history.Op]time.Duration
}

func newSession(o options, log *history.Log) *session {
	return &session{
		options: o, cancelCheck: func() {}, log: log, random: &random{r: rand.New(rand.NewPCG(o.seed, 1))}, begun: make(chan history.Op, 1),
		lvs: map[uint64]string{}, busy: map[uint64]bool{}, writers: map[uint64]*writer{}, took: map[history.Op]time.Duration{},
	}
}

// run is the machine's life: sometimes a check after lvm2's activation, then
// open and verify, then in turn load and kills of the driver, until the power
// is cut.
func (s *session) run() {
	s.removeHalfMade()
	if s.options.final || s.random.n(4) == 0 {
		s.byLVM2()
	}
	s.open()
	if s.options.check {
		s.verify(checkedSnapshots)
		return
	}
	s.verify(sample)
	for range s.options.kills {
		s.loadUntilKilled()
		for s.random.n(4) == 0 {
			s.start()
			time.Sleep(time.Duration(s.random.n(150)) * time.Millisecond)
			s.kill()
		}
		s.open()
		s.verify(sample)
	}
	if s.options.final {
		s.finish()
		return
	}
	s.log.End(history.Event{Kind: history.Load, Last: true})
	s.load(nil)
}

// start starts a driver.
func (s *session) start() {
	s.log.Begin(func(*history.Model) (history.Event, bool) { return history.Event{Kind: history.Opening}, true })
	d, err := startDriver(s.options)
	if err != nil {
		fail("starting the driver: %v", err)
	}
	s.driver = d
	s.killing.Store(false)
}

// open starts a driver and waits until it has opened the pool.
func (s *session) open() {
	s.start()
	if err := s.driver.ready(); err != nil {
		hung("opening the pool: %v", err)
	}
	s.log.End(history.Event{Kind: history.Opened})
}

// kill kills the driver. The volumes and their writers remain.
func (s *session) kill() {
	s.killing.Store(true)
	s.endCheck()
	if err := s.driver.kill(); err != nil {
		fail("%v", err)
	}
	s.log.End(history.Event{Kind: history.Killed})
}

// outcome is the outcome of a call.
type outcome int

const (
	done outcome = iota
	refused
	interrupted // the driver died: the operation may have happened or not
)

// call has the driver perform an operation. announce completes the event under
// the model's lock. It returns false if the operation is no longer possible,
// which counts as refused.
func (s *session) call(e history.Event, announce func(m *history.Model, e *history.Event) bool) (history.Event, outcome) {
	e.Kind = history.Intent
	e, ok := s.log.Begin(func(m *history.Model) (history.Event, bool) {
		if announce != nil && !announce(m, &e) {
			return e, false
		}
		e.Call = m.Next()
		return e, true
	})
	if !ok {
		return e, refused
	}
	select {
	case s.begun <- e.Op:
	default:
	}
	c := Call{Op: e.Op, Name: e.Name, LV: s.lv(e.ID), Size: e.Size, FS: e.FS, ReadOnly: e.ReadOnly, Transient: e.Transient}
	if e.Op == history.Rollback {
		c.Snapshot = s.lv(e.From)
	} else if e.From != 0 {
		c.LV = s.lv(e.From)
	}
	began := time.Now()
	var r Reply
	var err error
	if e.Op == history.LVM2Create || e.Op == history.LVM2Snapshot {
		r = s.byCommand(e)
	} else {
		r, err = s.driver.do(c)
	}
	if err != nil {
		if !s.killing.Load() {
			fail("%s: the driver died without being killed: %v", e.Op, err)
		}
		return e, interrupted
	}
	s.learn(e.Op, time.Since(began))
	if r.Error != "" {
		if !s.mayRefuse(e, r) {
			fail("%s %q of %q (object %d): %s", e.Op, e.Name, c.LV, e.ID, r.Error)
		}
		s.log.End(history.Event{Kind: history.Failed, Call: e.Call, Error: r.Error})
		return e, refused
	}
	if r.Size != e.Size {
		fail("%s %q of %q (object %d): the reply has size %v, want %v", e.Op, e.Name, c.LV, e.ID, r.Size, e.Size)
	}
	if r.LV != "" {
		s.mu.Lock()
		s.lvs[e.ID] = r.LV
		s.mu.Unlock()
	}
	s.log.End(history.Event{Kind: history.Done, Call: e.Call})
	return e, done
}

// mayRefuse reports whether the pool had a reason to refuse: no room, or a
// source that was being deleted.
func (s *session) mayRefuse(e history.Event, r Reply) (may bool) {
	switch {
	case r.NoSpace:
		return e.Size != 0
	case r.NotFound && e.Op == history.Restore:
		s.log.View(func(m *history.Model) {
			from := m.Objects[e.From]
			may = from == nil || !from.Certain
		})
	}
	return may
}

func (s *session) lv(id uint64) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lvs[id]
}

// learn keeps a moving mean of how long operations take.
func (s *session) learn(op history.Op, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.took[op] += (took - s.took[op]) / 4
}

// random makes random numbers for several goroutines.
type random struct {
	mu sync.Mutex
	r  *rand.Rand
}

// n returns a number below limit.
func (r *random) n(limit int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.r.IntN(limit)
}

// name returns a name that no object has. Names are used again after a
// deletion, and some cannot be the name of a logical volume.
func (s *session) name(m *history.Model, snapshot bool) string {
	taken := map[string]bool{}
	for _, o := range m.Objects {
		taken[o.Name] = true
	}
	for {
		n := s.random.n(60)
		kind := "vol"
		if snapshot {
			kind = "snap"
		}
		name := fmt.Sprintf("%s-%d", kind, n)
		if n%5 == 0 {
			name = fmt.Sprintf("%s №%d/x", kind, n)
		}
		if !taken[name] {
			return name
		}
	}
}
