package driver

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestReservations(t *testing.T) {
	var r reservations
	at := func(seconds int) time.Time { return time.Unix(1000+int64(seconds), 0) }
	for i, step := range []struct {
		seconds  int
		take     string // "" to check
		check    string
		want     codes.Code
		whatItIs string
	}{
		{0, "", "a/1", codes.Aborted, "nothing is reserved"},
		{0, "a/1", "", codes.OK, "a free name"},
		{1, "", "a/1", codes.OK, "the holder"},
		{2, "b/1", "", codes.Aborted, "another controller"},
		{3, "a/2", "", codes.OK, "the same controller again"},
		{3, "", "a/1", codes.Aborted, "the request before, late"},
		{32, "b/2", "", codes.Aborted, "the second time counts"},
		{34, "", "a/2", codes.OK, "its time is over, nobody took it"},
		{34, "b/3", "", codes.OK, "another controller, after that time"},
		{35, "", "a/2", codes.Aborted, "it was taken over"},
		{35, "", "b/3", codes.OK, "the new holder"},
		{35, "", "b/1", codes.Aborted, "what was never given"},
	} {
		var err error
		if step.take != "" {
			err = r.take("name", step.take, at(step.seconds))
		} else {
			err = r.check("name", step.check)
		}
		if status.Code(err) != step.want {
			t.Errorf("step %d, %s: %v, want %v", i, step.whatItIs, err, step.want)
		}
	}
	if err := r.take("another name", "c/1", at(36)); err != nil {
		t.Error("names are independent:", err)
	}
	if err := r.take("third", "c/2", at(1000)); err != nil || len(r.names) != 1 {
		t.Errorf("%v; %d names are kept, the times of all but one are over", err, len(r.names))
	}
}
