package callmeta

import (
	"errors"
	"testing"
	"time"
)

// TestReservations_holder: a name belongs to the controller whose reservation
// is the last, also after its time until another controller takes it.
func TestReservations_holder(t *testing.T) {
	var r Reservations
	at := func(seconds int) time.Time { return time.Unix(1000+int64(seconds), 0) }
	for i, step := range []struct {
		seconds  int
		take     string // "" to check
		check    string
		want     bool
		whatItIs string
	}{
		{0, "", "a/1", false, "nothing is reserved"},
		{0, "a/1", "", true, "a free name"},
		{1, "", "a/1", true, "the holder"},
		{2, "b/1", "", false, "another controller"},
		{3, "a/2", "", true, "the same controller again"},
		{3, "", "a/1", false, "the request before, late"},
		{32, "b/2", "", false, "the second time counts"},
		{34, "", "a/2", true, "its time is over, nobody took it"},
		{34, "b/3", "", true, "another controller, after that time"},
		{35, "", "a/2", false, "it was taken over"},
		{35, "", "b/3", true, "the new holder"},
		{35, "", "b/1", false, "what was never given"},
	} {
		var err error
		if step.take != "" {
			err = r.Take("name", step.take, at(step.seconds))
		} else {
			err = r.Check("name", step.check)
		}
		if (err == nil) != step.want || err != nil && !errors.Is(err, ErrReserved) {
			t.Errorf("step %d, %s: %v", i, step.whatItIs, err)
		}
	}
	if err := r.Take("another name", "c/1", at(36)); err != nil {
		t.Error("names are independent:", err)
	}
	if err := r.Take("third", "c/2", at(1000)); err != nil || len(r.names) != 1 {
		t.Errorf("%v; %d names are kept, the times of all but one are over", err, len(r.names))
	}
}
