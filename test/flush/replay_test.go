//go:build kernel

package flush

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/powercut/history"
)

const checkLimit = 2 * time.Minute

// replay checks power cuts during a recorded load until end. first is what the disks had
// before.
func (r *rig) replay(first []*memory, events []event, sum *count, end time.Time) {
	r.t.Helper()
	points := 0
	for _, e := range events {
		if e.ends() {
			points++
		}
	}
	sum.rounds++
	sum.flushes += points
	p := &player{rig: r, first: first, events: events}
	p.start()
	// If there is no time for all checks, some are left out, at random.
	share := min(1, float64(time.Until(end))/float64(3*max(1, points))/float64(sum.mean()))
	chosen := func(of float64) bool { return r.random.Float64() < share*of }
	part := func() loss { return 1 + loss(r.random.IntN(int(losses)-1)) }
	acked := 0
	for n, e := range events {
		// The cache is lost when the most was acknowledged, just before a flush ...
		if e.ends() && p.story.acked > acked {
			if acked = p.story.acked; chosen(1) {
				p.check(n-1, all, sum)
			}
		}
		p.happen(n, e)
		switch {
		case !e.ends():
			if e.Disk != historyDisk && chosen(0.1) {
				p.check(n, part(), sum)
			}
			continue
		case !p.changed():
			sum.same++
			continue
		}
		// ... and just after it, when the least of a change may be missing.
		if chosen(1) {
			p.check(n, all, sum)
		}
		if chosen(1) {
			p.check(n, part(), sum)
		}
		if time.Now().After(end) {
			return
		}
	}
}

// ends reports whether a prefix of the record that ends in this event is
// checked.
func (e event) ends() bool { return e.Disk != historyDisk && (e.Kind == flush || e.Kind == through) }

// player makes a record happen again.
type player struct {
	*rig
	first  []*memory
	events []event
	disks  []*cached
	story  *story
}

func (p *player) start() {
	for _, m := range p.first {
		p.disks = append(p.disks, newCached(m, diskSize))
	}
	p.story = newStory()
}

func (p *player) happen(n int, e event) {
	p.t.Helper()
	if e.Disk != historyDisk {
		p.disks[e.Disk].happen(n, e)
	} else if err := p.story.happen(e); err != nil {
		p.t.Fatal(err)
	}
}

// changed reports whether something has become durable since it was called last.
func (p *player) changed() (changed bool) {
	for _, d := range p.disks {
		changed = changed || d.changed
		d.changed = false
	}
	return changed
}

// check cuts the power after event n, and has the worker check what is left.
func (p *player) check(n int, l loss, sum *count) {
	p.t.Helper()
	seed := p.random.Uint64()
	began := time.Now()
	if err := p.cut(l, seed); err != nil {
		p.t.Fatalf("power cut after event %d of %d, %v, seed %d: %v\n%s", n, len(p.events), l, seed, err, p.keep(l, seed))
	}
	if sum.checking += time.Since(began); l == all {
		sum.prefixes++
	} else {
		sum.subsets++
	}
}

// cut cuts the power, and returns what the check of the disks finds.
func (p *player) cut(l loss, seed uint64) error {
	return p.examine(p.left(l, seed), p.story.model)
}

// left returns what a power cut leaves on the disks.
func (p *player) left(l loss, seed uint64) (left []*memory) {
	random := rand.New(rand.NewPCG(seed, 1))
	loser := random.IntN(len(p.disks))
	for i, d := range p.disks {
		its := l
		if l == one {
			if its = none; i == loser {
				its = all
			}
		}
		left = append(left, d.cut(its, random))
	}
	return left
}

// examine gives the disks this content and runs the worker, which opens the pool and
// compares everything with the model.
func (r *rig) examine(content []*memory, model *history.Model) error {
	for i, m := range content {
		if err := r.disks[i].replace(m); err != nil {
			return err
		}
	}
	if err := r.history.replace(newMemory(nil)); err != nil {
		return err
	}
	w, err := r.worker(r.paths(), model, "-check")
	if err != nil {
		return err
	}
	select {
	case err = <-w.ended:
	case <-time.After(checkLimit):
		err = errors.New("the check did not end")
	}
	w.kill() // its driver may still run
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, w.text())
	}
	return errors.Join(err, r.takeDown())
}
