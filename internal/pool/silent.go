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
	answerLimit   = 2 * time.Second        // how long a caller waits for the kernel's answer
	shortLimit    = 100 * time.Millisecond // the same while the kernel does not answer another question
	questionsMost = 64                     // open questions
	silentAfter   = 3 * time.Second        // a disk that takes longer for a transfer is reported
)

// errNoAnswer says that the kernel does not answer, usually because it waits for a disk.
var errNoAnswer = errors.New("the kernel does not answer")

// questions are the questions about snapshots that the kernel has not answered yet. A
// question takes a thread until the kernel answers it.
type questions struct {
	mu   sync.Mutex           // held for a look-up
	open map[string]*question // by device
}

type question struct {
	since time.Time
	done  chan struct{} // closed when the kernel has answered

	status dm.SnapshotStatus // the answer
	err    error
}

// statusSoon is snapshotStatus for a caller that only informs: it waits for at most
// answerLimit, and hardly for the second silent device of a call that asks about many.
// Errors: errNoAnswer.
func (p *Pool) statusSoon(name string) (dm.SnapshotStatus, error) {
	return p.questions.ask(name, p.snapshotStatus)
}

// ask calls status for a device, unless the same question is open. It waits for the answer
// until the question is answerLimit old, and only for shortLimit while another question is
// older than that. It does not ask while questionsMost questions are open.
func (q *questions) ask(name string, status func(name string) (dm.SnapshotStatus, error)) (dm.SnapshotStatus, error) {
	silent := fmt.Errorf("status of device %s: %w", name, errNoAnswer)
	now := time.Now()
	q.mu.Lock()
	this, limit := q.open[name], answerLimit
	for other, o := range q.open {
		if other != name && now.Sub(o.since) >= answerLimit {
			limit = shortLimit
		}
	}
	if this == nil && len(q.open) >= questionsMost {
		q.mu.Unlock()
		return dm.SnapshotStatus{}, silent
	}
	if this == nil {
		this = &question{since: now, done: make(chan struct{})}
		q.open[name] = this
		go func() {
			this.status, this.err = status(name)
			q.mu.Lock()
			delete(q.open, name)
			q.mu.Unlock()
			close(this.done)
		}()
	}
	q.mu.Unlock()
	late := time.NewTimer(limit - now.Sub(this.since))
	defer late.Stop()
	select {
	case <-this.done:
		return this.status, this.err
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
