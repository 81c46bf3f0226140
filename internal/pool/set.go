package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

const (
	firstRetry  = time.Second      // pause before a pool that did not open is retried
	lastRetry   = time.Minute      // longest pause, after many failures
	deviceLook  = 2 * time.Second  // pause between two checks whether its devices have changed
	openingWait = 15 * time.Second // how long one pool's devices may delay the others
	closingWait = 10 * time.Second // how long Close waits for an attempt to open
	loanFirst   = 5 * time.Second  // pause before the first search for unused loans
	loanLook    = time.Minute      // pause between two searches for unused loans
)

// Set holds the pools of a node. The open pools can be used. The others are retried
// in the background, earlier if block devices come or go.
type Set struct {
	members []*member // in the order of the configuration
	cancel  context.CancelFunc
}

// member is a configured pool with its state.
type member struct {
	config  Config
	options Options
	held    chan struct{} // closed when this process holds the pool's lock
	tried   chan struct{} // closed after the first attempt to open it
	ended   chan struct{} // closed after the last attempt

	mu   sync.Mutex
	pool *Pool // nil if it is not open
	err  error // why it is not open
	// absent says that the pool is optional and was never here. expected says that
	// somebody has an id of a volume or snapshot in it, so that it was here.
	absent, expected bool
}

// OpenSet opens the pools of a node. It returns an error only if the configuration
// can never be right, or if ctx ends. It waits, as long as ctx lives, for another
// process that has the pools open. If that process releases only some of them, because
// it was killed and the kernel still waits for a disk of the others, OpenSet does not
// wait for the others for long. Then it waits briefly until each pool was tried once.
// The pools stay open after ctx ends, until Close.
func OpenSet(ctx context.Context, configs []Config, o Options) (*Set, error) {
	s := &Set{}
	o = o.withDefaults()
	var groups []string
	for _, c := range configs {
		groups = append(groups, c.withDefaults().VolumeGroup)
	}
	for _, c := range configs {
		c = c.withDefaults()
		c.Groups = append(slices.Clone(groups), c.Groups...) // includes the pools of other nodes
		if err := c.Check(); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(s.members, func(m *member) bool { return m.config.Name == c.Name }) {
			return nil, fmt.Errorf("%w: two pools have the name %s", ErrInvalid, c.Name)
		}
		o.logged = &deviceLog{why: map[string]string{}} // separate for each pool
		s.members = append(s.members, &member{
			config: c, options: o, err: errors.New("it is being opened"),
			held: make(chan struct{}), tried: make(chan struct{}), ended: make(chan struct{}),
		})
	}
	own, cancel := context.WithCancel(klog.NewContext(context.Background(), klog.FromContext(ctx)))
	s.cancel = cancel
	for _, m := range s.members {
		go m.run(own)
	}
	s.waitHeld(ctx, openingWait)
	go s.loans(own)
	s.waitTried(ctx, openingWait)
	if ctx.Err() != nil {
		return nil, errors.Join(fmt.Errorf("opening the pools: %w", context.Cause(ctx)), s.Close())
	}
	return s, nil
}

// waitHeld waits until this process has the lock of each pool or, for limit longer, of
// any.
func (s *Set) waitHeld(ctx context.Context, limit time.Duration) {
	any := make(chan struct{}, len(s.members))
	for _, m := range s.members {
		go func() {
			select {
			case <-m.held:
				any <- struct{}{}
			case <-ctx.Done():
			}
		}()
	}
	var late <-chan time.Time
	for range s.members {
		select {
		case <-any:
		case <-late:
			return
		case <-ctx.Done():
			return
		}
		if late == nil {
			late = time.After(limit)
		}
	}
}

// waitTried waits until each pool whose lock this process has was tried once, or for
// limit.
func (s *Set) waitTried(ctx context.Context, limit time.Duration) {
	late := time.NewTimer(limit)
	defer late.Stop()
	for _, m := range s.members {
		select {
		case <-m.held:
		default:
			continue // waitHeld has already waited for it
		}
		select {
		case <-m.tried:
		case <-late.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// Names returns the names of the node's pools, open or not, in the order of the
// configuration. It omits optional pools that were never here.
func (s *Set) Names() []string {
	names := []string{}
	for _, m := range s.members {
		if !m.away() {
			names = append(names, m.config.Name)
		}
	}
	return names
}

// Expect reports whether a pool of that name is configured. Call it with the pool
// of an id of a volume or snapshot: the id proves that the pool was here. If the
// pool seemed never to have been here, it counts as missing from now on.
func (s *Set) Expect(name string) bool {
	for _, m := range s.members {
		if m.config.Name == name {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.expected = true
			return true
		}
	}
	return false
}

// Pool returns the pool of that name. Errors: ErrNotFound if the node has no such
// pool; ErrUnavailable, with the reason, if the pool is not open.
func (s *Set) Pool(name string) (*Pool, error) {
	for _, m := range s.members {
		if m.config.Name == name {
			return m.get()
		}
	}
	return nil, fmt.Errorf("pool %s: %w", name, ErrNotFound)
}

// Close closes the open pools, all at the same time, and stops the attempts to open the
// others.
func (s *Set) Close() error {
	s.cancel()
	errs := make([]error, len(s.members))
	var closing sync.WaitGroup
	for i, m := range s.members {
		closing.Go(func() {
			select {
			case <-m.ended:
				errs[i] = m.close()
			case <-time.After(closingWait):
				errs[i] = fmt.Errorf("pool %s: its devices do not answer, so the attempt to open it was abandoned", m.config.Name)
			}
		})
	}
	closing.Wait()
	return errors.Join(errs...)
}

func (m *member) get() (*Pool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.pool != nil:
		return m.pool, nil
	case m.absent && !m.expected:
		return nil, fmt.Errorf("pool %s is optional and not on this node: %w", m.config.Name, ErrNotFound)
	case errors.Is(m.err, ErrUnavailable):
		return nil, fmt.Errorf("pool %s is not open: %w", m.config.Name, m.err)
	}
	return nil, fmt.Errorf("pool %s is not open: %w: %w", m.config.Name, ErrUnavailable, m.err)
}

// set records the result of an attempt to open the pool.
func (m *member) set(p *Pool, err error, absent bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pool, m.err, m.absent = p, err, absent
}

// away reports whether the pool is optional, and nothing proves that it was ever
// here.
func (m *member) away() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.absent && !m.expected
}

func (m *member) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pool == nil {
		return nil
	}
	p := m.pool
	m.pool, m.err = nil, errors.New("it was closed")
	return p.Close()
}

// run opens the pool, and retries until it succeeds or ctx ends. It takes the lock
// that excludes other processes before the first attempt, and keeps it.
func (m *member) run(ctx context.Context) {
	defer close(m.ended)
	log := klog.FromContext(ctx).WithValues("pool", m.config.Name)
	var unlock func() error
	first := true
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		seen := m.devices()
		var err error
		if unlock == nil {
			if unlock, err = lockPool(ctx, m.options.RunDir, m.config.VolumeGroup); first {
				close(m.held)
			}
		}
		if err == nil {
			var p *Pool
			if p, err = openHeld(ctx, m.config, m.options); err == nil {
				p.unlock, unlock = unlock, nil
				m.set(p, nil, false)
				log.Info("Opened pool", "volumeGroup", m.config.VolumeGroup)
			}
		}
		if err != nil {
			m.set(nil, err, unlock != nil && Absent(ctx, m.config, m.options))
		}
		if first {
			close(m.tried)
			first = false
		}
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			if m.away() {
				wait = lastRetry // ends earlier if devices appear
				log.V(2).Info("The pool is optional and not on this node", "why", err.Error())
			} else {
				log.Error(err, "Failed to open the pool; it will be retried", "after", wait)
			}
			m.pause(ctx, wait, seen)
		}
		if ctx.Err() != nil {
			if unlock != nil {
				if err := unlock(); err != nil {
					log.Error(err, "Failed to release the pool's lock")
				}
			}
			return
		}
	}
}

// pause waits before the next attempt: until the time is over, or until the devices
// differ from those seen before the last attempt.
func (m *member) pause(ctx context.Context, wait time.Duration, seen []string) {
	over := time.NewTimer(wait)
	defer over.Stop()
	look := time.NewTicker(deviceLook)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-over.C:
			return
		case <-look.C:
			if !slices.Equal(m.devices(), seen) {
				return
			}
		}
	}
}

// devices returns the devices that are, or may become, the pool's.
func (m *member) devices() []string {
	all, _ := blockDevices(nil) // an attempt to open the pool reports the error
	matches, _ := m.config.matches()
	for _, d := range matches {
		all = append(all, d.path)
	}
	return all
}
