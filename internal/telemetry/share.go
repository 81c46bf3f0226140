package telemetry

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

// shared does something once for all who ask while it is being done, and for
// who asks soon after: many who ask cost no more than one.
type shared[T any] struct {
	do   func(context.Context) (T, error)
	keep time.Duration // how old a result may be that is given out

	mu   sync.Mutex
	last *outcome[T] // or the one that is being made; nil before the first
}

type outcome[T any] struct {
	done  chan struct{}
	at    time.Time // when it was made; zero while it is not
	value T
	err   error
}

// get returns a result, or the error of ctx.
func (s *shared[T]) get(ctx context.Context) (T, error) {
	s.mu.Lock()
	o := s.last
	if o == nil || !o.at.IsZero() && time.Since(o.at) >= s.keep {
		o = &outcome[T]{done: make(chan struct{})}
		s.last = o
		go s.make(context.WithoutCancel(ctx), o) // the others go on waiting for it
	}
	s.mu.Unlock()
	select {
	case <-o.done:
		return o.value, o.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

func (s *shared[T]) make(ctx context.Context, o *outcome[T]) {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	o.value, o.err = s.do(ctx)
	s.mu.Lock()
	o.at = time.Now()
	s.mu.Unlock()
	close(o.done)
}

// page renders figures. One that cannot be had does not keep the others back.
func page(g prometheus.Gatherer) ([]byte, error) {
	families, err := g.Gather()
	var text bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&text, f); err != nil {
			return nil, err
		}
	}
	if text.Len() > 0 {
		err = nil
	}
	return text.Bytes(), err
}
