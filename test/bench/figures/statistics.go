package figures

import (
	"math"
	"slices"
)

// Median returns the middle sample, or the mean of the two middle ones.
func Median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	n := len(s)
	if n%2 == 1 {
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

// Percentile returns the smallest sample that at least p percent of the samples
// do not exceed.
func Percentile(samples []float64, p float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	return s[max(0, int(math.Ceil(float64(len(s))*p/100))-1)]
}

// Interval returns a confidence interval of at least 95 percent for the median
// of the samples' distribution, whatever this distribution is: the k-th
// smallest and the k-th largest sample. ok is false if there are fewer than six
// samples.
func Interval(samples []float64) (low, high float64, ok bool) {
	s := slices.Sorted(slices.Values(samples))
	n := len(s)
	// k is the largest number such that fewer than k of n fair coins show heads
	// in at most 2.5 percent of all cases.
	k, below, term := 0, 0.0, math.Pow(0.5, float64(n))
	for k < n/2 && below+term <= 0.025 {
		below += term
		k++
		term *= float64(n-k+1) / float64(k)
	}
	if k == 0 {
		return 0, 0, false
	}
	return s[k-1], s[n-k], true
}
