package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

const (
	leaveLimit = 3 * time.Second  // how long an attempt to open a pool may take to end after its caller has left
	closeLimit = 25 * time.Second // how long Close waits for the pool's work to end
)

// Pool is an open pool. Its methods may be called concurrently. Its parts own the
// state, each with its own locks; doc.go lists the order of the locks.
type Pool struct {
	setting
	group
	mapper
	storeGuard
	outside   outside
	wiper     *wiper
	hydrator  *hydrator
	folder    folder
	copies    copies
	caretaker *caretaker
	merges    chan struct{} // holds a token for each flat store that is being written
}

// setting is what the pool was opened with. It does not change afterwards.
type setting struct {
	config Config
	by     string       // who gave the command for which the pool is opened; "" for a driver's pool
	runDir string       // directory of the pool's lock, and of notes for the next process
	unlock func() error // releases the pool's lock; nil if the pool must not release it
	blank  bool         // all of the group's extents hold zeroes, because it was just made on a new file
}

// Open takes the pool's lock, and waits for it as long as ctx lives. Then it
// creates the volume group or uses an existing one, and repairs what an
// interruption left.
func Open(ctx context.Context, c Config, o Options) (*Pool, error) {
	c, o = c.withDefaults(), o.withDefaults()
	if err := c.Check(); err != nil {
		return nil, err
	}
	unlock, err := lockPool(ctx, o.RunDir, c.VolumeGroup)
	if err != nil {
		return nil, fmt.Errorf("opening pool %s: %w", c.Name, err)
	}
	p, err := openHeld(ctx, c, o)
	if err != nil {
		return nil, fmt.Errorf("opening pool %s: %w", c.Name, errors.Join(err, unlock()))
	}
	p.unlock = unlock
	return p, nil
}

// openHeld is Open for a caller that holds the pool's lock. The configuration is
// checked and has its defaults.
func openHeld(ctx context.Context, c Config, o Options) (*Pool, error) {
	p := newPool(ctx, c, o)
	p.log = p.log.WithValues("pool", c.Name)
	p.ctx, p.cancel = context.WithCancel(klog.NewContext(context.Background(), p.log))
	opened := make(chan error, 1)
	go func() { opened <- guard(p.log, func() error { return p.start(ctx) }) }()
	select {
	case err := <-opened:
		return p.orError(err)
	case <-ctx.Done():
	}
	// Usually the attempt ends now. If a disk, or a system call that waits for one,
	// does not answer, the attempt is abandoned, and its pool is closed when it
	// returns.
	select {
	case err := <-opened:
		return p.orError(err)
	case <-time.After(leaveLimit):
		go func() {
			if <-opened == nil {
				_ = p.Close()
			}
		}()
		return nil, fmt.Errorf("%w: its devices do not answer, so the attempt to open it was abandoned: %w", ErrUnavailable, context.Cause(ctx))
	}
}

// newPool returns a pool that is not open: it has no device-mapper client and no
// metadata. The configuration is checked and has its defaults.
func newPool(ctx context.Context, c Config, o Options) *Pool {
	p := &Pool{
		group: group{
			name: c.Name, vgName: c.VolumeGroup, host: o.LVM, log: klog.FromContext(ctx), facts: newFacts(),
			changes: make(chan *change), urgent: make(chan *change), lonely: make(chan *change), stopped: make(chan struct{}),
			keys: keyed{held: map[string][]chan struct{}{}},
		},
		setting:    setting{config: c, by: o.By, runDir: o.RunDir},
		mapper:     mapper{deepest: deepestChain(), questions: questions{open: map[string]*question{}}},
		storeGuard: storeGuard{lookSoon: make(chan struct{}, 1), keep: (*view).ReadThrough},
		outside:    outside{logged: o.logged},
		copies:     copies{turn: make(chan struct{}, 1)},
		merges:     make(chan struct{}, mergesAtOnce),
	}
	p.mapped, p.group.settled = p.mappings, p.settled
	p.hydrator, p.wiper, p.caretaker, p.folder.pool = newHydrator(p), newWiper(p), newCaretaker(p), p
	return p
}

// settled wakes the owners that have work after a change. before is nil if the
// state before the change is unknown.
func (p *Pool) settled(before, after *view) {
	p.lookAgain()
	p.wiper.settled(before, after)
	p.hydrator.settled(before, after)
}

// orError returns p, or err if opening p failed.
func (p *Pool) orError(err error) (*Pool, error) {
	if err != nil {
		return nil, err
	}
	return p, nil
}

// start opens the resources of p, repairs what an interruption left, and starts
// the background work.
func (p *Pool) start(ctx context.Context) error {
	if err := p.open(ctx); err != nil {
		p.cancel()
		return errors.Join(err, p.release())
	}
	go p.commitLoop()
	giveUp := context.AfterFunc(ctx, p.cancel)
	if err := p.repair(ctx); err != nil {
		return errors.Join(err, p.Close())
	}
	if !giveUp() {
		return errors.Join(context.Cause(ctx), p.Close())
	}
	p.thawProbed()
	for _, loop := range []func(context.Context){p.wiper.loop, p.cleanLoop, p.watchLoop, p.caretaker.loop, p.refreshLoop, p.extendLoop, p.folder.loop, p.strangersLoop} {
		p.forever(loop)
	}
	return nil
}

// open acquires the resources that the pool needs from the machine.
func (p *Pool) open(ctx context.Context) (err error) {
	if p.dm, err = dm.Open(); err != nil {
		return err
	}
	if err := p.needsTargets(); err != nil {
		return err
	}
	p.vgStore, err = p.openGroup(ctx)
	return err
}

// Name returns the pool's name.
func (p *Pool) Name() string { return p.name }

// Close ends the background work and releases the pool's lock. Devices stay as they
// are, because pods use them. Work that hangs in the kernel is abandoned, and then
// Close returns an error.
func (p *Pool) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	ended := make(chan struct{})
	go func() {
		<-p.stopped
		p.work.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return p.release()
	case <-time.After(closeLimit):
	}
	// The abandoned work can change nothing when it returns: its client is closed,
	// and its context has ended.
	errs := []error{fmt.Errorf("pool %s: its devices do not answer, so the work that waits for them was abandoned", p.name), p.dm.Close()}
	if p.unlock != nil {
		errs = append(errs, p.unlock())
	}
	return errors.Join(errs...)
}

func (p *Pool) release() error {
	var errs []error
	if p.vgStore != nil {
		errs = append(errs, p.vgStore.Close())
	}
	if p.dm != nil {
		errs = append(errs, p.dm.Close())
	}
	if p.unlock != nil {
		errs = append(errs, p.unlock())
	}
	return errors.Join(errs...)
}
