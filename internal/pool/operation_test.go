package pool

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

// TestKeyed_turnsInOrder: a goroutine that releases a key and immediately locks it again
// waits for the goroutines that came before, such as the growth of a store.
func TestKeyed_turnsInOrder(t *testing.T) {
	k := keyed{held: map[string][]chan struct{}{}}
	stop, rounds := make(chan struct{}), 0
	var working sync.WaitGroup
	started := make(chan struct{})
	working.Go(func() {
		for {
			release, err := k.lock(context.Background(), "a")
			if err != nil {
				t.Error(err)
				return
			}
			if rounds++; rounds == 1 {
				close(started)
			}
			time.Sleep(10 * time.Millisecond)
			select {
			case <-stop:
				release()
				return
			default:
				release()
			}
		}
	})
	<-started
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	release, err := k.lock(ctx, "a")
	if err != nil {
		close(stop)
		t.Fatal(err)
	}
	if rounds > 2 {
		t.Errorf("another goroutine got the key only after %d rounds", rounds)
	}
	close(stop)
	release()
	working.Wait()
	if len(k.held) > 0 {
		t.Errorf("keys are still held: %v", k.held)
	}
}

// TestKeyed_callerLeaves: a caller that stops waiting leaves the key to the others.
func TestKeyed_callerLeaves(t *testing.T) {
	k := keyed{held: map[string][]chan struct{}{}}
	first, err := k.lock(context.Background(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(context.Background())
	var waiting sync.WaitGroup
	for range 50 {
		waiting.Go(func() {
			if release, err := k.lock(ended, "a"); err == nil {
				release()
			} else if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		waiting.Go(func() {
			release, err := k.lock(context.Background(), "a")
			if err != nil {
				t.Error(err)
				return
			}
			release()
		})
	}
	go cancel()
	first()
	waiting.Wait()
	if len(k.held) > 0 {
		t.Errorf("keys are still held: %v", k.held)
	}
}
