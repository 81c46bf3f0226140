package pool

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

const (
	answerLimit = 2 * time.Second // a question to the kernel that takes longer is not asked again meanwhile
	silentAfter = 3 * time.Second // a disk that takes longer for a transfer is reported
)

// errNoAnswer says that the kernel does not answer, usually because it waits for a disk.
var errNoAnswer = errors.New("the kernel does not answer")

// questions are the questions about snapshots that the kernel has not answered yet.
type questions struct {
	mu    sync.Mutex           // held for a look-up
	since map[string]time.Time // by device: when the oldest began
}

// statusSoon is snapshotStatus for a caller that only informs: it waits for at most
// answerLimit, and not at all while an earlier question about the device takes longer.
// Errors: errNoAnswer.
func (p *Pool) statusSoon(name string) (dm.SnapshotStatus, error) {
	return p.questions.ask(name, p.snapshotStatus)
}

// ask calls status for a device, and does not wait for it for longer than answerLimit.
func (q *questions) ask(name string, status func(name string) (dm.SnapshotStatus, error)) (dm.SnapshotStatus, error) {
	silent := fmt.Errorf("status of device %s: %w", name, errNoAnswer)
	now := time.Now()
	q.mu.Lock()
	since, open := q.since[name]
	if !open {
		q.since[name], since = now, now
	}
	q.mu.Unlock()
	if now.Sub(since) >= answerLimit {
		return dm.SnapshotStatus{}, silent
	}
	type result struct {
		status dm.SnapshotStatus
		err    error
	}
	answer := make(chan result, 1)
	go func() {
		status, err := status(name)
		q.mu.Lock()
		delete(q.since, name)
		q.mu.Unlock()
		answer <- result{status, err}
	}()
	late := time.NewTimer(answerLimit - now.Sub(since))
	defer late.Stop()
	select {
	case r := <-answer:
		return r.status, r.err
	case <-late.C:
		return dm.SnapshotStatus{}, silent
	}
}

// Silent returns, for messages, the disks that have not answered the pool for some time.
// It never waits for a disk.
func (p *Pool) Silent() (disks []string) {
	for _, w := range p.vgStore.Waits() {
		if waited := time.Since(w.Since); waited >= silentAfter {
			disks = append(disks, fmt.Sprintf("disk %s has not answered for %v", w.Device, waited.Round(time.Second)))
		}
	}
	return slices.Compact(disks)
}
