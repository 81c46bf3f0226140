package telemetry

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Callers that arrive while do runs share its result. A later caller gets a new result,
// and a caller whose context has ended does not wait.
func TestShared_oneRun(t *testing.T) {
	var made atomic.Int32
	entered, release := make(chan bool, 100), make(chan bool)
	one := &shared[int32]{do: func(context.Context) (int32, error) {
		entered <- true
		<-release
		return made.Add(1), nil
	}}
	var all sync.WaitGroup
	ask := func() {
		if _, err := one.get(t.Context()); err != nil {
			t.Error(err)
		}
	}
	all.Go(ask)
	<-entered
	for range 50 {
		all.Go(ask)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := one.get(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that has left: %v", err)
	}
	time.Sleep(50 * time.Millisecond) // most of the fifty arrive; a late caller starts another run
	close(release)
	all.Wait()
	if n := made.Load(); n > 10 {
		t.Errorf("%d runs", n)
	}
	before := made.Load()
	if got, err := one.get(t.Context()); err != nil || got != before+1 {
		t.Errorf("a later caller gets an old result: %d, %v", got, err)
	}
}
