//go:build !points

package point

// On tells whether the program was built to be ended at a point.
const On = false

// Before is never called.
func Before(what, where string) {}

// After is never called.
func After(what, where string) {}
