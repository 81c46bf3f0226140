package election

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"k8s.io/client-go/kubernetes/fake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestLease_oneLeader: only one process leads at a time, and another takes over
// after the first has ended its work.
func TestLease_oneLeader(t *testing.T) {
	client := fake.NewClientset()
	var leaders, terms atomic.Int32
	elected := make(chan string, 10)
	start := func(name string) (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		var done sync.WaitGroup
		done.Go(func() {
			l := Lease{Client: client, Namespace: "n", Name: "l", Identity: name, Duration: 2 * time.Second, Deadline: time.Second, Period: 20 * time.Millisecond}
			err := l.Run(ctx, func(ctx context.Context) {
				if leaders.Add(1) != 1 {
					t.Error("two leaders")
				}
				terms.Add(1)
				elected <- name
				<-ctx.Done()
				time.Sleep(50 * time.Millisecond) // tidying up
				leaders.Add(-1)
			})
			if err != nil {
				t.Error(err)
			}
			if leaders.Load() != 0 && terms.Load() == 1 {
				t.Error("did not wait for its leader to end")
			}
		})
		return func() { cancel(); done.Wait() }
	}
	stopA := start("a")
	if first := <-elected; first != "a" {
		t.Errorf("elected %s", first)
	}
	stopB := start("b")
	time.Sleep(200 * time.Millisecond)
	if terms.Load() != 1 {
		t.Error("b leads while a does")
	}
	stopA()
	select {
	case second := <-elected:
		if second != "b" {
			t.Errorf("elected %s", second)
		}
	case <-time.After(20 * time.Second):
		t.Error("nobody took over")
	}
	stopB()
}
