package dm

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Watcher waits for events of any device: a snapshot becomes invalid, a mirror
// gets in sync or loses a leg, a device is created, renamed, removed or gets a new
// table. There is no event when a snapshot fills, overflows or has merged.
//
// Call Arm, inspect the devices, call Wait, and start over: an event after Arm
// ends the next Wait. The EventNr of List shows which devices had events.
//
// A Watcher is for one goroutine; only Close may be called from another.
type Watcher struct{ control }

// NewWatcher opens the control device again, because each open control device has
// its own mark in the stream of events. The caller must Close the watcher.
func (c *Client) NewWatcher() (*Watcher, error) {
	k, err := newControl(c.controlPath())
	if err != nil {
		return nil, err
	}
	return &Watcher{k}, nil
}

// Arm sets the mark: Wait waits for an event after the mark.
func (w *Watcher) Arm() error {
	_, err := w.call(context.Background(), opArm, request{})
	return err
}

// Wait returns at the first event after Arm. Until the next Arm, further calls
// return immediately.
//
// Errors: the cause of ctx's end; an error if the watcher is closed.
func (w *Watcher) Wait(ctx context.Context) error {
	ended := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(ended)
		_ = w.file.SetReadDeadline(time.Unix(1, 0))
	})
	var failed error
	// The runtime's poller is edge-triggered, so poll for the current level first.
	err := w.conn.Read(func(fd uintptr) bool {
		var n int
		n, failed = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if failed == unix.EINTR {
			n, failed = 0, nil
		}
		return n != 0
	})
	if !cancel() {
		<-ended
		err = errors.Join(err, w.file.SetReadDeadline(time.Time{}))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return context.Cause(ctx)
	}
	return errors.Join(err, failed)
}

// Close closes the watcher and ends a Wait in another goroutine.
func (w *Watcher) Close() error { return w.file.Close() }
