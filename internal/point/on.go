//go:build points

package point

import "sync"

// On reports whether the program was built with the tag points.
const On = true

var plan struct {
	mu     sync.Mutex
	left   int
	end    func(where string)
	passed []string
}

// Arm starts the count again. The n-th point from now on calls end and waits until
// end returns; end need not return. If n is 0, no point calls end.
func Arm(n int, end func(where string)) {
	plan.mu.Lock()
	defer plan.mu.Unlock()
	plan.left, plan.end, plan.passed = n, end, nil
}

// Passed returns the points since Arm, in order.
func Passed() []string {
	plan.mu.Lock()
	defer plan.mu.Unlock()
	return append([]string(nil), plan.passed...)
}

// Before is called before a change. what is the kind of change, and where is the
// changed device.
func Before(what, where string) { pass("before " + what + " " + where) }

// After is called after a change, also if the change failed.
func After(what, where string) { pass("after " + what + " " + where) }

// pass calls end with the lock held, so that other goroutines block at their next
// point.
func pass(where string) {
	plan.mu.Lock()
	defer plan.mu.Unlock()
	plan.passed = append(plan.passed, where)
	if plan.left--; plan.left == 0 && plan.end != nil {
		plan.end(where)
	}
}
