//go:build kernel

package dm

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestWatcher_invalidSnapshot: a snapshot that becomes invalid ends Wait, and
// Wait returns until the next Arm.
func TestWatcher_invalidSnapshot(t *testing.T) {
	c := open(t)
	origin, _ := snapshotted(t, c, Persistent, 1)
	w, err := c.NewWatcher()
	must(t, err)
	defer w.Close()
	must(t, w.Arm())
	wait := func(limit time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		return w.Wait(ctx)
	}
	for range 2 { // an abandoned wait does not affect the next
		if err := wait(100 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("wait without an event: %v", err)
		}
	}
	before, err := c.Info("t-snap")
	must(t, err)
	written := make(chan error, 1)
	go func() { written <- write(origin, 0, 2*size.MiB, 2) }()
	must(t, wait(20*time.Second))
	must(t, <-written)
	checkStatus(t, c, "t-snap", "Invalid")
	after, err := c.Info("t-snap")
	must(t, err)
	if after.EventNr != before.EventNr+1 {
		t.Errorf("event number was %d and is %d", before.EventNr, after.EventNr)
	}
	must(t, wait(time.Second)) // the event lasts until the next Arm
	must(t, w.Arm())
	if err := wait(100 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait after arming again: %v", err)
	}
	must(t, c.Rename("t-snap", "t-renamed", 0))
	must(t, wait(time.Second))
}

// TestWatcher_close: Close ends a Wait with an error.
func TestWatcher_close(t *testing.T) {
	w, err := open(t).NewWatcher()
	must(t, err)
	must(t, w.Arm())
	ended := make(chan error)
	go func() { ended <- w.Wait(context.Background()) }()
	time.Sleep(50 * time.Millisecond)
	must(t, w.Close())
	select {
	case err := <-ended:
		if err == nil {
			t.Error("Wait returned without an error, as after an event")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Close does not end Wait")
	}
}
