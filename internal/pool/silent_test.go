package pool

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// TestQuestions_noAnswer: a question that the kernel does not answer delays its caller
// for a moment, later callers not at all, and callers that ask about other devices not
// at all. When the kernel answers, it is asked again.
func TestQuestions_noAnswer(t *testing.T) {
	q := questions{open: map[string]*question{}}
	hang, asked := make(chan bool), make(chan bool, 10)
	status := func(name string) (dm.SnapshotStatus, error) {
		asked <- true
		if name == "hangs" {
			<-hang
		}
		return dm.SnapshotStatus{Used: 8}, nil
	}
	began := time.Now()
	if _, err := q.ask("hangs", status); !errors.Is(err, errNoAnswer) || time.Since(began) > answerLimit+time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	<-asked
	began = time.Now()
	for range 5 {
		if _, err := q.ask("hangs", status); !errors.Is(err, errNoAnswer) {
			t.Error(err)
		}
	}
	if len(asked) > 0 {
		t.Error("the kernel was asked again")
	}
	if s, err := q.ask("other", status); err != nil || s.Used != 8 || time.Since(began) > time.Second {
		t.Errorf("another device: %v, %v after %v", s, err, time.Since(began))
	}
	close(hang)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if s, err := q.ask("hangs", status); err == nil && s.Used == 8 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it is not asked again")
		}
	}
}

// TestQuestions_manySilent: a call that asks about many devices of a disk that does not
// answer waits little longer than for one, and the threads that wait are bounded.
func TestQuestions_manySilent(t *testing.T) {
	q := questions{open: map[string]*question{}}
	hang := make(chan bool)
	var asked atomic.Int64
	status := func(string) (dm.SnapshotStatus, error) {
		asked.Add(1)
		<-hang
		return dm.SnapshotStatus{Used: 8}, nil
	}
	began := time.Now()
	for range 2 {
		for i := range 2 * questionsMost {
			if _, err := q.ask(fmt.Sprint(i), status); !errors.Is(err, errNoAnswer) {
				t.Fatal(err)
			}
		}
	}
	if took, limit := time.Since(began), answerLimit+2*questionsMost*shortLimit; took > limit {
		t.Errorf("it took %v, want at most %v", took, limit)
	}
	if n := asked.Load(); n != questionsMost {
		t.Errorf("%d questions were asked, want %d", n, questionsMost)
	}
	close(hang)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if s, err := q.ask("new", status); err == nil && s.Used == 8 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("nothing is asked any more")
		}
	}
}
