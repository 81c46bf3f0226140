package telemetry

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

// shared runs do once for all callers that arrive while it runs, or within keep after
// it ended. So many callers cost no more than one.
type shared[T any] struct {
	do   func(context.Context) (T, error)
	keep time.Duration // the greatest age of a result

	mu   sync.Mutex
	last *outcome[T] // the running or the last run; nil before the first. Guarded by mu.
}

// outcome is one run of do. value and err are valid once done is closed.
type outcome[T any] struct {
	done  chan struct{}
	at    time.Time // the end of the run; zero while it runs. Guarded by shared.mu.
	value T
	err   error
}

// get returns the result of a run, or the error of ctx if ctx ends before the run.
func (s *shared[T]) get(ctx context.Context) (T, error) {
	s.mu.Lock()
	o := s.last
	if o == nil || !o.at.IsZero() && time.Since(o.at) >= s.keep {
		o = &outcome[T]{done: make(chan struct{})}
		s.last = o
		go s.make(context.WithoutCancel(ctx), o) // other callers may wait longer than this one
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

// make runs do for at most checkLimit, and completes o.
func (s *shared[T]) make(ctx context.Context, o *outcome[T]) {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	o.value, o.err = s.do(ctx)
	s.mu.Lock()
	o.at = time.Now()
	s.mu.Unlock()
	close(o.done)
}

// page renders metrics as text. A collector that fails does not hide the others.
//
// Errors: no metrics could be gathered, or a metric could not be rendered.
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
