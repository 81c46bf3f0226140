package pool

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestGrowth_neverOutrun starts writers of every speed up to the peak at any moment,
// on new stores of volumes from 4 MiB to 16 TiB, in pools with much and with little
// free, with any firstStoreSize. The store may have been made for a lower peak. The
// monitor is as late as it may be, and growth takes any time. The store must never need
// more room than it has.
func TestGrowth_neverOutrun(t *testing.T) {
	const seed = 4
	r := rand.New(rand.NewPCG(seed, 0))
	any := func(least, most size.Bytes) size.Bytes { // each order of magnitude is as likely
		return size.Bytes(float64(least) * math.Exp2(r.Float64()*math.Log2(float64(most)/float64(least))))
	}
	held := 0
	for run := range 20000 {
		chunk := 4 * size.KiB << r.IntN(8)
		c := Config{Name: "a", Chunk: chunk, BurstRate: any(size.MiB, 8*size.GiB)}
		if r.IntN(3) == 0 {
			c.FirstStore = max(any(size.MiB, size.TiB), c.LeastStore())
		}
		if r.IntN(3) == 0 {
			c.StoreStep = max(any(size.MiB, size.TiB), c.LeastStore())
		}
		before := rate(c.BurstRate.Sectors())
		peak := before * rate(1+r.IntN(2)*r.IntN(4))
		origin := any(4*size.MiB, 16*size.TiB)
		most := cow.LargestUseful(origin, chunk).Sectors()
		total := firstLength(c, origin, chunk, any(size.MiB, 16*size.TiB), before).Sectors()
		if total >= most {
			continue // it has a place for every chunk
		}
		w := burst{speed: peak * rate([]float64{1, 1, r.Float64()}[r.IntN(3)]), begin: time.Duration(r.Int64N(int64(2 * time.Second)))}
		late := func() time.Duration { return time.Duration(r.Int64N(3)) * lateness / 2 }
		if peak == before {
			w.pass(time.Duration(r.Int64N(int64(surveyPause))) + late() + late())
		} else {
			w.begin += 2 * lateness // the monitor has just seen the new peak
		}
		if !w.outrun(t, c, total, most, peak, late, func() time.Duration { return time.Duration(r.Int64N(int64(5 * time.Second))) }, &held) {
			t.Fatalf("seed %d, run %d: volume of %v, peak %v/s, %+v", seed, run, origin, size.Sectors(peak).Bytes(), c)
		}
	}
	if held < 1000 {
		t.Errorf("writers were held only %d times", held)
	}
}

// burst is an idle volume that is written from a moment on.
type burst struct {
	now, begin time.Duration
	speed      rate
	used       size.Sectors
}

// pass lets the writer continue for d.
func (w *burst) pass(d time.Duration) {
	if w.now += d; w.now > w.begin {
		w.used += w.speed.in(min(d, w.now-w.begin))
	}
}

// outrun runs the monitor's decisions and the writer for a few seconds. It reports
// false if the writer is held too late.
func (w *burst) outrun(t *testing.T, c Config, total, most size.Sectors, peak rate, late, growing func() time.Duration, held *int) bool {
	chunk, grown := c.Chunk.Sectors(), time.Duration(-1)
	for end := w.now + 4*time.Second; w.now < end && total < most; {
		left := total - min(w.used, total)
		grow, must := decide(left, total, chunk, peak, 0, c.small())
		if grow && grown < 0 {
			grown = w.now + growing()
		}
		if grown >= 0 && w.now >= grown {
			total, grown = min(most, total+growStep(c.StoreStep, chunk, peak, 0).Sectors()), -1
			continue
		}
		if !must {
			w.pass(nextLook(left, chunk, peak, w.speed) + late())
			continue
		}
		*held++
		w.pass(late()) // until the brake takes effect
		if w.used+inFlight(chunk) > total && w.now > w.begin {
			t.Errorf("writers are held with %v left of %v, %v may be in flight", (total - min(w.used, total)).Bytes(), total.Bytes(), inFlight(chunk).Bytes())
			return false
		}
		w.used += inFlight(chunk) // they were under way
		w.now = max(w.now, grown) // nothing else is written until the store has grown
	}
	return true
}

// TestGrowth_documentedSizes checks the sizes for the default burstRate that the
// documents name.
func TestGrowth_documentedSizes(t *testing.T) {
	peak := rate(defaultBurst.Sectors())
	for _, c := range []struct{ chunk, brake, grow, first size.Bytes }{
		{4 * size.KiB, 32 * size.MiB, 83 * size.MiB, 83 * size.MiB},
		{16 * size.KiB, 59 * size.MiB, 110 * size.MiB, 118 * size.MiB},
		{64 * size.KiB, 167 * size.MiB, 218 * size.MiB, 334 * size.MiB},
	} {
		brake, grow, first := brakeLine(c.chunk.Sectors(), peak).Bytes(), growLine(c.chunk.Sectors(), peak, 0).Bytes(), Config{Chunk: c.chunk}.LeastStore()
		if brake.RoundUp(size.MiB) != c.brake || grow.RoundUp(size.MiB) != c.grow || first.RoundUp(size.MiB) != c.first {
			t.Errorf("chunks of %v: writers are held at %v, stores grow at %v and begin with %v", c.chunk, brake, grow, first)
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
