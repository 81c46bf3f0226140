package pool

import (
	"fmt"
	"testing"
)

// TestCaretaker_trimsAtOnce: only so many stores are trimmed at the same time, and the
// caretaker looks for the next stores when all these trims have ended.
func TestCaretaker_trimsAtOnce(t *testing.T) {
	c := newCaretaker(nil)
	for i := range trimsAtOnce {
		if c.trimming() {
			t.Fatalf("the caretaker stops after %d trims", i)
		}
		if key := fmt.Sprint(careTrim, i); !c.begin(careTrim, key) || c.begin(careTrim, key) {
			t.Fatal("a trim can begin twice, or not at all")
		}
	}
	if !c.begin("leftover", "leftover") || !c.trimming() {
		t.Error("other work does not begin, or more stores are trimmed")
	}
	for i := range trimsAtOnce {
		if len(c.soon) > 0 {
			t.Fatalf("the caretaker looks again after %d trims", i)
		}
		c.trimmed()
		if c.trimming() {
			t.Fatal("the end of a trim lets no other begin")
		}
	}
	if len(c.soon) == 0 {
		t.Error("the caretaker does not look again after all trims")
	}
}
