package pool

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
)

// jobs are long operations on volumes, at most one on each volume. A job continues
// after its waiting callers have left.
type jobs struct {
	mu      sync.Mutex      // guards running; only group.mu may be taken while it is held
	running map[string]*job // by LV name
}

type job struct {
	total   uint64        // bytes
	done    atomic.Uint64 // bytes
	writing atomic.Bool   // the volume's device is being written to
	ended   chan struct{}
	err     error // valid once ended is closed
}

// of returns the job on lv; nil if there is none.
func (s *jobs) of(lv string) *job {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running[lv]
}

// await waits for the job on lv until ctx ends, and then returns a *PendingError
// with the progress. If there is no job, await begins one: prepare returns the
// amount of work, or nil if there is none, and work does the work.
func (s *jobs) await(ctx context.Context, p *Pool, lv, what string, prepare func() (*job, error), work func(context.Context, *job) error) error {
	j, err := s.begin(p, lv, prepare, work)
	if j == nil {
		return err
	}
	select {
	case <-j.ended:
		return j.err
	case <-ctx.Done():
		return &PendingError{What: what, Done: j.done.Load(), Total: j.total}
	}
}

// begin returns the job on lv, and begins one if there is none.
func (s *jobs) begin(p *Pool, lv string, prepare func() (*job, error), work func(context.Context, *job) error) (*job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.running[lv]; j != nil {
		return j, nil
	}
	j, err := prepare()
	if j == nil || err != nil {
		return nil, err
	}
	if !p.begin() {
		return nil, fmt.Errorf("pool %s is closed: %w", p.name, ErrUnavailable)
	}
	if s.running == nil {
		s.running = map[string]*job{}
	}
	j.ended = make(chan struct{})
	s.running[lv] = j
	go func() {
		defer p.work.Done()
		j.err = guard(p.log, func() error { return work(p.ctx, j) })
		s.mu.Lock()
		delete(s.running, lv)
		s.mu.Unlock()
		close(j.ended)
	}()
	return j, nil
}
