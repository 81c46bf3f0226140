package pool

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestGrowth_neverOutrun starts writers of every speed up to the peak at any
// moment, on a store of at least twice its brake line. The monitor is as late as it
// may be, and growth takes any time. The store must never need more room than it has.
func TestGrowth_neverOutrun(t *testing.T) {
	const seed = 4
	r := rand.New(rand.NewPCG(seed, 0))
	peak := rate(defaultBurst.Sectors())
	for run := range 20000 {
		chunk := size.Bytes(4 * size.KiB << r.IntN(8)).Sectors()
		total := 2*brakeLine(chunk, peak) + size.Sectors(r.Uint64N(uint64(size.GiB.Sectors())))
		used := size.Sectors(0)
		late := func() time.Duration { return time.Duration(r.Int64N(3)) * lateness / 2 }
		now, grown := time.Duration(0), time.Duration(-1)
		begin, speed := time.Duration(r.Int64N(int64(2*time.Second))), peak*rate([]float64{1, 1, r.Float64()}[r.IntN(3)])
		pass := func(d time.Duration) { // the writer continues for d
			if now += d; now > begin {
				used += speed.in(min(d, now-begin))
			}
		}
		for now < 4*time.Second {
			left := total - min(used, total)
			grow, must := decide(left, total, chunk, peak, 0)
			if grow && grown < 0 {
				grown = now + time.Duration(r.Int64N(int64(5*time.Second)))
			}
			if grown >= 0 && now >= grown {
				total, grown = total+growStep(0, chunk, peak, 0).Sectors(), -1
				continue
			}
			if must {
				pass(late()) // until the brake takes effect
				if used+inFlight(chunk) > total {
					t.Fatalf("seed %d, run %d: chunk %v: writers are held with %v left, %v may be in flight", seed, run, chunk.Bytes(), (total - used).Bytes(), inFlight(chunk).Bytes())
				}
				now = grown // nothing is written until the store has grown
				continue
			}
			pass(nextLook(left, chunk, peak, speed) + late())
		}
	}
}

// TestGrowth_documentedSizes checks the sizes for the default chunk that the
// documents name.
func TestGrowth_documentedSizes(t *testing.T) {
	peak := rate(defaultBurst.Sectors())
	for _, c := range []struct{ chunk, brake, grow size.Bytes }{
		{4 * size.KiB, 32 * size.MiB, 83 * size.MiB},
		{16 * size.KiB, 59 * size.MiB, 110 * size.MiB},
		{64 * size.KiB, 167 * size.MiB, 218 * size.MiB},
	} {
		brake, grow := brakeLine(c.chunk.Sectors(), peak).Bytes(), growLine(c.chunk.Sectors(), peak, 0).Bytes()
		if brake.RoundUp(size.MiB) != c.brake || grow.RoundUp(size.MiB) != c.grow {
			t.Errorf("chunks of %v: writers are held at %v and stores grow at %v", c.chunk, brake, grow)
		}
	}
	// A store of the largest useful size needs no lines.
	if most := cow.LargestUseful(16*size.MiB, 16*size.KiB); most > 17*size.MiB {
		t.Errorf("a volume of 16 MiB needs a store of %v", most)
	}
}

// TestSample_rateDecays measures a rate over a period, and forgets it after a
// while.
func TestSample_rateDecays(t *testing.T) {
	start := time.Now()
	at := func(d time.Duration, used size.Sectors) sample { return sample{used, start.Add(d)} }
	r, base := sample{}.next(at(0, 1000), 0)
	if r != 0 {
		t.Errorf("rate after one look: %v", r)
	}
	if r, base = base.next(at(ratePeriod/10, 100000), r); r != 0 {
		t.Errorf("a burst counts as %v per second", r)
	}
	if r, base = base.next(at(ratePeriod*2, 101000), r); r != rate(100000/(2*ratePeriod).Seconds()) {
		t.Errorf("rate %v", r)
	}
	full := r
	if r, base = base.next(at(ratePeriod*2+keepsUpFor/4, 101000), r); r >= full || r < full/2 {
		t.Errorf("a moment after the end: %v of %v", r, full)
	}
	if r, _ = base.next(at(ratePeriod*2+2*keepsUpFor, 101000), r); r != 0 {
		t.Errorf("long after the end: %v", r)
	}
}
