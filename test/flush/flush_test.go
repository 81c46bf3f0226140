//go:build kernel

package flush

import (
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/powercut/worker"
)

const workerVar = "DMSNAP_FLUSH_WORKER"

var (
	seed     = flag.Uint64("seed", 0, "seed of all random choices; 0 takes the seed from the clock")
	duration = flag.Duration("for", 20*time.Second, "how long each test makes and checks power cuts")
	again    = flag.String("again", "", "check a power cut again that was kept in this `FILE`")
	loadTime = flag.Duration("load", 4*time.Second, "how long each load runs")
)

func TestMain(m *testing.M) {
	if os.Getenv(workerVar) != "" {
		worker.Main()
		return
	}
	os.Exit(m.Run())
}

// TestFlushes: whatever part of their caches the disks lose, everything that was
// acknowledged is there.
func TestFlushes(t *testing.T) {
	r := newRig(t, newSeed(t), 2)
	if *again != "" {
		if err := r.again(*again); err != nil {
			t.Fatal(err)
		}
		return
	}
	r.campaign(func(round int) ([]*memory, []event) {
		first := []*memory{firstContent(r.random), firstContent(r.random)}
		if round%2 == 1 {
			first = r.madeByLVM2(first)
		}
		return first, r.record(first, *loadTime, r.random.IntN(3)/2)
	})
}

// campaign records loads, and checks power cuts during each of them.
func (r *rig) campaign(load func(round int) (first []*memory, events []event)) {
	r.t.Helper()
	var sum count
	for began := time.Now(); sum.rounds == 0 || time.Since(began) < *duration; {
		first, events := load(sum.rounds)
		if sum.rounds == 0 {
			r.notice(first, events)
		}
		r.replay(first, events, &sum, began.Add(*duration))
		r.t.Logf("after %v: %v", time.Since(began).Round(time.Second), sum)
	}
}

// notice checks that the test can fail: it must notice disks that ignore flushes in
// the second half of the record.
func (r *rig) notice(first []*memory, events []event) {
	r.t.Helper()
	p := &player{rig: r, first: first}
	p.start()
	for n, e := range events {
		if n > len(events)/2 && e.Disk != historyDisk {
			switch e.Kind {
			case flush:
				continue
			case through:
				e.Kind = write
			}
		}
		p.happen(n, e)
	}
	if err := p.cut(all, 0); err == nil {
		r.t.Error("disks that ignore flushes are not noticed")
	}
}

// count is what was done.
type count struct {
	rounds, flushes, prefixes, subsets, same int
	checking                                 time.Duration
}

// mean returns how long a check takes.
func (c count) mean() time.Duration {
	if n := c.prefixes + c.subsets; n > 0 {
		return c.checking / time.Duration(n)
	}
	return time.Second
}

func (c count) String() string {
	return fmt.Sprintf("%d loads with %d flushes and FUA writes, of which %d changed nothing; checked %d times without the cache, and %d times with a part of it, %v each",
		c.rounds, c.flushes, c.same, c.prefixes, c.subsets, c.mean().Round(time.Millisecond))
}

// newSeed returns the seed of the test's random choices, and logs it.
func newSeed(t *testing.T) uint64 {
	n := *seed
	if n == 0 {
		n = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", n)
	return n
}
