package figures

import "testing"

func upTo(n int) []float64 {
	s := make([]float64, n)
	for i := range s {
		s[i] = float64((i*7)%n + 1) // 1 to n in another order, if 7 does not divide n
	}
	return s
}

// TestStatistics_medianAndPercentile: median and percentiles of known samples are
// right.
func TestStatistics_medianAndPercentile(t *testing.T) {
	for _, c := range []struct {
		n                int
		median, p50, p99 float64
	}{{1, 1, 1, 1}, {2, 1.5, 1, 2}, {5, 3, 3, 5}, {100, 50.5, 50, 99}, {200, 100.5, 100, 198}} {
		s := upTo(c.n)
		if m, p50, p99 := Median(s), Percentile(s, 50), Percentile(s, 99); m != c.median || p50 != c.p50 || p99 != c.p99 {
			t.Errorf("%d samples: median %v, percentiles %v and %v, want %v, %v and %v", c.n, m, p50, p99, c.median, c.p50, c.p99)
		}
	}
}

// TestStatistics_interval: the confidence interval of the median has the ranks in the
// tables of the sign test.
func TestStatistics_interval(t *testing.T) {
	for n, k := range map[int]float64{6: 1, 8: 1, 9: 2, 12: 3, 20: 6, 30: 10, 40: 14, 100: 40} {
		low, high, ok := Interval(upTo(n))
		if !ok || low != k || high != float64(n)+1-k {
			t.Errorf("%d samples: from the %vth to the %vth (%v), want from the %vth to the %vth", n, low, high, ok, k, float64(n)+1-k)
		}
	}
	if low, high, ok := Interval(upTo(5)); ok {
		t.Errorf("five samples have the interval %v to %v", low, high)
	}
}
