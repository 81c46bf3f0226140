//go:build points

package point

import "sync"

// On tells whether the program was built to be ended at a point.
const On = true

var plan struct {
	mu     sync.Mutex
	left   int
	end    func(where string)
	passed []string
}

// Arm begins to count anew, and has end called at the n-th point from here on: the
// caller of that point waits until end returns, which it need not. Nothing is
// called if n is 0.
func Arm(n int, end func(where string)) {
	plan.mu.Lock()
	defer plan.mu.Unlock()
	plan.left, plan.end, plan.passed = n, end, nil
}

// Passed returns the points that were met since Arm, in order.
func Passed() []string {
	plan.mu.Lock()
	defer plan.mu.Unlock()
	return append([]string(nil), plan.passed...)
}

// Before is called before something is changed: what says how, where on what.
func Before(what, where string) { pass("before " + what + " " + where) }

// After is called when it is changed, or when that failed.
func After(what, where string) { pass("after " + what + " " + where) }

// pass calls end with the lock held: whoever comes to another point meanwhile stands still there.
func pass(where string) {
	plan.mu.Lock()
	defer plan.mu.Unlock()
	plan.passed = append(plan.passed, where)
	if plan.left--; plan.left == 0 && plan.end != nil {
		plan.end(where)
	}
}
