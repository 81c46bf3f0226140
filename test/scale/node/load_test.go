package main

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// TestTogether_everyCallOnce: together makes each call once and by all callers, and its
// error is the error of a call.
func TestTogether_everyCallOnce(t *testing.T) {
	const n, callers = 100, 8
	var running, most atomic.Int64
	calls := make([]int, n)
	rate, took, err := together(n, callers, func(i int) error {
		now := running.Add(1)
		defer running.Add(-1)
		for seen := most.Load(); now > seen && !most.CompareAndSwap(seen, now); seen = most.Load() {
		}
		calls[i]++
		time.Sleep(time.Millisecond)
		return nil
	})
	if err != nil || rate <= 0 || len(took) != n || slices.Min(calls) != 1 || slices.Max(calls) != 1 || most.Load() > callers {
		t.Errorf("rate %v, %d times, calls %v, %d at once, error %v", rate, len(took), calls, most.Load(), err)
	}
	failed := errors.New("failed")
	if _, _, err := together(n, callers, func(i int) error {
		if i == n/2 {
			return failed
		}
		return nil
	}); !errors.Is(err, failed) {
		t.Errorf("together returns %v", err)
	}
}

// TestPercentile_ofFewSamples: the median and the 99th percentile are samples.
func TestPercentile_ofFewSamples(t *testing.T) {
	var took []time.Duration
	for i := range 200 {
		took = append(took, time.Duration(200-i)*time.Millisecond)
	}
	if m, p := median(took), percentile(took, 99); m.Value != 100 || p.Value != 198 {
		t.Errorf("median %v, p99 %v", m, p)
	}
	if m := median(took[:1]); m.Value != 200 {
		t.Errorf("the median of a single sample is %v", m)
	}
}

// TestFigure_digits: a figure is printed with three significant digits and its unit.
func TestFigure_digits(t *testing.T) {
	for want, f := range map[string]*figure{"0.12 s": value(0.123, "s"), "12.3 ms": value(12.34, "ms"), "123/s": value(123.4, "/s"), "not measured": nil} {
		if got := f.String(); got != want {
			t.Errorf("%+v is printed as %q, not %q", f, got, want)
		}
	}
}
