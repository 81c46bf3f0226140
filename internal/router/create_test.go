package router

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
)

func (f *fake) setRoom(room int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.room = room
}

func (f *fake) onBefore(before func(ctx context.Context, method string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before = before
}

func (f *fake) onAfter(after func(ctx context.Context, method string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.after = after
}

// TestCreateVolume_repeated: a repeated request finds its volume although the
// room has changed, so that the second request would choose another node.
func TestCreateVolume_repeated(t *testing.T) {
	nodes := cluster(t, 100, 300)
	for i, r := range []*Router{newRouter(t, nodes...), newRouter(t, nodes...)} {
		reply, err := r.CreateVolume(t.Context(), request("v", 10))
		if err != nil || reply.GetVolume().GetVolumeId() != "v1:n2:fast:v" {
			t.Errorf("call %d: %v, %v", i, reply, err)
		}
		nodes[0].setRoom(1000)
		_, err = r.CreateVolume(t.Context(), request("v", 11))
		wantCode(t, "another size", err, codes.AlreadyExists)
	}
	if got := where("v", nodes); !slices.Equal(got, []string{"n2"}) {
		t.Errorf("it is on %v", got)
	}
}

// TestCreateVolume_lostReply: a volume whose creation was not confirmed is
// found again although the room has changed.
func TestCreateVolume_lostReply(t *testing.T) {
	nodes := cluster(t, 100, 300)
	nodes[1].onAfter(func(ctx context.Context, method string) error {
		if method == "CreateVolume" {
			nodes[0].setRoom(1000)
			nodes[1].onAfter(nil)
			go nodes[1].stop()
			<-ctx.Done() // the connection is cut
		}
		return nil
	})
	r := newRouter(t, nodes...)
	_, err := r.CreateVolume(t.Context(), request("v", 10))
	wantCode(t, "the answer is lost", err, codes.Unavailable)
	_, err = r.CreateVolume(t.Context(), request("v", 10))
	wantCode(t, "the node that has it is down", err, codes.Unavailable)
	r.SetNodes([]Node{nodes[0].node(), nodes[1].gone(time.Now())})
	_, err = r.CreateVolume(t.Context(), request("v", 10))
	wantCode(t, "the node that has it is not ready", err, codes.Unavailable)

	nodes[1].start("127.0.0.1:0")
	r.SetNodes(nodesOf(nodes...))
	reply, err := r.CreateVolume(t.Context(), request("v", 10))
	if err != nil || reply.GetVolume().GetVolumeId() != "v1:n2:fast:v" {
		t.Errorf("the node is back: %v, %v", reply, err)
	}
	if got := where("v", nodes); !slices.Equal(got, []string{"n2"}) {
		t.Errorf("it is on %v", got)
	}
}

// stalledCreate is stalledCreateOf volume v.
func stalledCreate(t *testing.T, r *Router, n *fake) (resume chan struct{}, ended chan error) {
	t.Helper()
	return stalledCreateOf(t, r, n, "v")
}

// stalledCreateOf begins to create a volume by r, and returns while node n delays its
// answer to GetCapacity, until resume is closed. ended gets the error of the call.
func stalledCreateOf(t *testing.T, r *Router, n *fake, name string) (resume chan struct{}, ended chan error) {
	t.Helper()
	asked, resume, ended := make(chan struct{}), make(chan struct{}), make(chan error)
	var once atomic.Bool
	n.onBefore(func(_ context.Context, method string) error {
		if method == "GetCapacity" && once.CompareAndSwap(false, true) {
			close(asked)
			<-resume
		}
		return nil
	})
	go func() {
		_, err := r.CreateVolume(t.Context(), request(name, 10))
		ended <- err
	}()
	<-asked
	return resume, ended
}

// TestReserve_twoReplicas: while one replica is between reserving a name and
// creating the volume, another replica cannot begin with the name.
func TestReserve_twoReplicas(t *testing.T) {
	nodes := cluster(t, 100, 300)
	r1, r2 := newRouter(t, nodes...), newRouter(t, nodes...)
	resume, ended := stalledCreate(t, r1, nodes[0])
	nodes[0].setRoom(1000)
	_, err := r2.CreateVolume(t.Context(), request("v", 10))
	wantCode(t, "the second replica", err, codes.Aborted)
	_, err = r1.CreateVolume(t.Context(), request("v", 10))
	wantCode(t, "the first replica again", err, codes.Aborted)
	close(resume)
	wantCode(t, "the first replica", <-ended, codes.OK)
	if got := where("v", nodes); len(got) != 1 {
		t.Errorf("it is on %v", got)
	}
	if _, err := r2.CreateVolume(t.Context(), request("v", 10)); err != nil {
		t.Errorf("the second replica finds it: %v", err)
	}
}

// TestReserve_stalledReplica: a replica that stalls for longer than its
// reservations last is refused if another replica has placed the name
// meanwhile.
func TestReserve_stalledReplica(t *testing.T) {
	nodes := cluster(t, 300, 100)
	r1, r2 := newRouter(t, nodes...), newRouter(t, nodes...)
	resume, ended := stalledCreate(t, r1, nodes[1])
	nodes[1].setRoom(1000)
	for _, n := range nodes {
		n.mu.Lock()
		n.clock = callmeta.ReservationTime + time.Second
		n.mu.Unlock()
	}
	reply, err := r2.CreateVolume(t.Context(), request("v", 10))
	if err != nil || reply.GetVolume().GetVolumeId() != "v1:n2:fast:v" {
		t.Errorf("the second replica: %v, %v", reply, err)
	}
	nodes[1].setRoom(1) // the first request has already asked n1, and chooses n1
	close(resume)
	wantCode(t, "the first replica", <-ended, codes.Aborted)
	if got := where("v", nodes); !slices.Equal(got, []string{"n2"}) {
		t.Errorf("it is on %v", got)
	}
}

// TestReserve_lateRequest: an abandoned request that arrives after a retry has
// placed the volume on another node creates nothing.
func TestReserve_lateRequest(t *testing.T) {
	nodes := cluster(t, 300, 100)
	r := newRouter(t, nodes...)
	arrived, resume := make(chan struct{}), make(chan struct{})
	late := make(chan struct{})
	var once atomic.Bool
	nodes[0].onBefore(func(_ context.Context, method string) error {
		if method == "CreateVolume" && once.CompareAndSwap(false, true) {
			close(arrived)
			<-resume
			nodes[0].onAfter(func(context.Context, string) error { close(late); return nil })
		}
		return nil
	})
	ctx, giveUp := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := r.CreateVolume(ctx, request("v", 10))
		ended <- err
	}()
	<-arrived
	giveUp()
	wantCode(t, "cancelled", <-ended, codes.Canceled)
	nodes[1].setRoom(1000)
	r.rooms.forget("n2")
	if _, err := r.CreateVolume(t.Context(), request("v", 10)); err != nil {
		t.Fatal(err)
	}
	close(resume)
	<-late
	if got := where("v", nodes); !slices.Equal(got, []string{"n2"}) {
		t.Errorf("it is on %v", got)
	}
}

// TestReserve_nodeRestarts: a node that restarts between the reservation and
// the request refuses the request.
func TestReserve_nodeRestarts(t *testing.T) {
	nodes := cluster(t, 300, 100)
	r := newRouter(t, nodes...)
	nodes[1].onBefore(func(_ context.Context, method string) error {
		if method == "GetCapacity" {
			nodes[0].mu.Lock()
			nodes[0].reserved = callmeta.Reservations{}
			nodes[0].mu.Unlock()
		}
		return nil
	})
	_, err := r.CreateVolume(t.Context(), request("v", 10))
	wantCode(t, "the reservation is lost", err, codes.Aborted)
	nodes[1].onBefore(nil)
	_, err = r.CreateVolume(t.Context(), request("v", 10))
	wantCode(t, "asked again", err, codes.OK)
}

// TestReserve_neverTwice: two replicas, callers that retry, lost answers and
// changing room never create a name on two nodes.
func TestReserve_neverTwice(t *testing.T) {
	const count = 12
	nodes := cluster(t, 1<<40, 1<<40, 1<<40)
	for _, n := range nodes {
		n.onBefore(func(_ context.Context, method string) error {
			if method == "GetCapacity" {
				n.setRoom(1<<40 + rand.Int64N(1<<20))
			}
			if rand.IntN(10) == 0 {
				return unavailable("lost on the way there")
			}
			return nil
		})
		n.onAfter(func(context.Context, string) error {
			if rand.IntN(10) == 0 {
				return unavailable("lost on the way back")
			}
			return nil
		})
	}
	replicas := []*Router{newRouter(t, nodes...), newRouter(t, nodes...)}
	var wg sync.WaitGroup
	for i := range count {
		for _, r := range replicas {
			wg.Go(func() {
				name := fmt.Sprintf("v%d", i)
				for end := time.Now().Add(time.Minute); time.Now().Before(end); {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(200+rand.IntN(1000))*time.Millisecond)
					_, err := r.CreateVolume(ctx, request(name, 10))
					cancel()
					switch status.Code(toStatus(err)) {
					case codes.OK:
						return
					case codes.Unavailable, codes.Aborted, codes.DeadlineExceeded, codes.Canceled:
						time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond)
					default:
						t.Errorf("%s: %v", name, err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	made := 0
	for i := range count {
		name := fmt.Sprintf("v%d", i)
		switch got := where(name, nodes); len(got) {
		case 0:
		case 1:
			made++
		default:
			t.Errorf("%s is on %v", name, got)
		}
	}
	if made < count {
		t.Errorf("only %d of %d volumes were made", made, count)
	}
}

// TestReserve_silentNode: a node that does not answer in time prevents the
// creation on other nodes.
func TestReserve_silentNode(t *testing.T) {
	nodes := cluster(t, 100, 300)
	r := newRouter(t, nodes...)
	for _, answer := range []error{
		unavailable("x"), errors.New("x"), errorf(codes.Internal, "x"), errorf(codes.Unimplemented, "x"),
		errorf(codes.FailedPrecondition, "not enrolled yet"), errorf(codes.DeadlineExceeded, "x"),
	} {
		nodes[0].onBefore(func(context.Context, string) error { return answer })
		_, err := r.CreateVolume(t.Context(), request("v", 10))
		wantCode(t, answer.Error(), err, codes.Unavailable)
	}
	if got := where("v", nodes); got != nil {
		t.Errorf("it is on %v", got)
	}
}

// TestReserve_tookTooLong: a volume is not created if asking all nodes took so
// long that the first reservation may be over.
func TestReserve_tookTooLong(t *testing.T) {
	nodes := cluster(t, 100, 300)
	var now atomic.Int64
	r := routerOf(t, Options{Clock: func() time.Time { return time.Unix(now.Load(), 0) }}, nodes...)
	nodes[1].onBefore(func(_ context.Context, method string) error {
		now.Add(int64(callmeta.ReservationTime / time.Second))
		return nil
	})
	_, err := r.CreateVolume(t.Context(), request("v", 10))
	wantCode(t, "too slow", err, codes.Aborted)
	if got := where("v", nodes); got != nil {
		t.Errorf("it is on %v", got)
	}
	nodes[1].onBefore(nil)
	_, err = r.CreateVolume(t.Context(), request("v", 10))
	wantCode(t, "asked again", err, codes.OK)
}
