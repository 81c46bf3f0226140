package pool

import (
	"fmt"
	"testing"
	"time"
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
		c.trimmed(fmt.Sprint(careTrim, i))
		if c.trimming() {
			t.Fatal("the end of a trim lets no other begin")
		}
	}
	if len(c.soon) == 0 {
		t.Error("the caretaker does not look again after all trims")
	}
}

// TestCaretaker_trimsThatWait: trims that wait, as for a disk that does not answer, do not
// keep other stores from being trimmed.
func TestCaretaker_trimsThatWait(t *testing.T) {
	c := newCaretaker(nil)
	for i := range trimsAtOnce {
		c.begin(careTrim, fmt.Sprint(careTrim, i))
	}
	if !c.trimming() {
		t.Fatal("more stores are trimmed")
	}
	for key := range c.trims {
		c.trims[key] = time.Now().Add(-trimPatience)
	}
	if c.trimming() {
		t.Error("trims that wait keep others from beginning")
	}
	c.begin(careTrim, "other")
	if c.trimmed("other"); len(c.soon) == 0 {
		t.Error("the caretaker does not look again after all other trims")
	}
}
