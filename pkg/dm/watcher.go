package dm

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Watcher waits for events of any device: a snapshot that becomes invalid, a
// mirror that gets in sync or loses a leg, and devices that are made, renamed,
// removed or get a new table. A snapshot that fills, overflows or has merged
// makes no event.
//
// Arm, then look at the devices (the EventNr of List tells which had events),
// then Wait, and begin again: an event after Arm ends the Wait that follows.
// A Watcher is for one goroutine.
type Watcher struct{ control }

// NewWatcher opens the control device once more: each has its own mark in the
// stream of events.
func (c *Client) NewWatcher() (*Watcher, error) {
	k, err := newControl(c.controlPath())
	if err != nil {
		return nil, err
	}
	return &Watcher{k}, nil
}

// Arm sets the mark: Wait waits for an event after it.
func (w *Watcher) Arm() error {
	_, err := w.call(context.Background(), opArm, request{})
	return err
}

// Wait returns at the first event after Arm, or with the cause of ctx's end.
func (w *Watcher) Wait(ctx context.Context) error {
	ended := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(ended)
		_ = w.file.SetReadDeadline(time.Unix(1, 0))
	})
	var failed error
	// The runtime's poller wakes at the edge only, so ask for the level before.
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

// Close closes the watcher and ends its Wait.
func (w *Watcher) Close() error { return w.file.Close() }
