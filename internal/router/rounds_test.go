package router

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

// stallFirst delays the node's answer to the first question for a name until resume
// is closed. asked is closed when the question has arrived.
func stallFirst(n *fake) (asked, resume chan struct{}) {
	asked, resume = make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	n.onBefore(func(_ context.Context, method string) error {
		if method == "look:CreateVolume" && once.CompareAndSwap(false, true) {
			close(asked)
			<-resume
		}
		return nil
	})
	return asked, resume
}

// count returns how many names wait for a round.
func (s *rounds) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting)
}

// TestRounds_together: claims that come while a round runs are asked for in the next
// round. Each node gets one call for all of them, and is asked for its room once. The
// claims go to the nodes with most room, counted without the former claims.
func TestRounds_together(t *testing.T) {
	const claims, bytes = 50, 10
	room := make([]int64, askers+6) // more would not answer in time on a machine that is busy
	for i := range room {
		room[i] = 20 * bytes
	}
	nodes := cluster(t, room...)
	now := time.Now()
	r := routerOf(t, Options{Clock: func() time.Time { return now }}, nodes...) // the rooms stay known
	r.rounds.pause = time.Minute
	asked, resume := stallFirst(nodes[0])
	var wg sync.WaitGroup
	create := func(i int) {
		wg.Go(func() {
			if _, err := r.CreateVolume(t.Context(), request(fmt.Sprintf("v%d", i), bytes)); err != nil {
				t.Error(err)
			}
		})
	}
	create(0)
	<-asked
	for i := range claims - 1 {
		create(i + 1)
	}
	eventually(t, "all other claims wait", func() bool { return r.rounds.count() == claims-1 })
	close(resume)
	wg.Wait()
	for _, n := range nodes {
		if rounds, rooms := n.requests("Reserve"), n.requests("GetCapacity"); rounds != 2 || rooms != 1 {
			t.Fatalf("%s got %d calls for names and %d for its room, want 2 and 1", n, rounds, rooms)
		}
		if n.requests("CreateVolume") > 1 || n.conns.Load() != 1 {
			t.Errorf("%s got %d volumes over %d connections", n, n.requests("CreateVolume"), n.conns.Load())
		}
	}
}

// TestRounds_olderNode: a node that does not know the call for many names is asked
// for each name, and keeps its part in the reservation.
func TestRounds_olderNode(t *testing.T) {
	nodes := cluster(t, 100, 300)
	nodes[1].stop()
	nodes[1].old = true
	nodes[1].start("127.0.0.1:0")
	for _, r := range []*Router{newRouter(t, nodes...), newRouter(t, nodes...)} {
		reply, err := r.CreateVolume(t.Context(), request("v", 10))
		if err != nil || reply.GetVolume().GetVolumeId() != "v1:n2:fast:v" {
			t.Errorf("%v, %v", reply, err)
		}
	}
	if got := nodes[1].requests("look:CreateVolume"); got != 2 {
		t.Errorf("the older node was asked %d times", got)
	}
	r1, r2 := newRouter(t, nodes...), newRouter(t, nodes...)
	resume, ended := stalledCreateOf(t, r1, nodes[0], "w")
	_, err := r2.CreateVolume(t.Context(), request("w", 10))
	wantCode(t, "the second replica", err, codes.Aborted)
	close(resume)
	wantCode(t, "the first replica", <-ended, codes.OK)
}

// TestRounds_silentNode: a node that does not answer delays only the claims that need
// its answer.
func TestRounds_silentNode(t *testing.T) {
	nodes := cluster(t, 100, 100, 100)
	r := newRouter(t, nodes...)
	asked, resume := stallFirst(nodes[0])
	ended := make(chan error)
	go func() {
		_, err := r.CreateVolume(t.Context(), request("v", 10))
		ended <- err
	}()
	<-asked
	q := request("w", 10)
	q.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: on("n2", "n3")}
	if _, err := r.CreateVolume(t.Context(), q); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		t.Errorf("the first claim did not wait: %v", err)
	default:
	}
	close(resume)
	wantCode(t, "the first claim", <-ended, codes.OK)
}

// TestRounds_silentNodeInRound: a node that does not answer does not delay the other
// claims of its round, whether their first nodes are different or the same.
func TestRounds_silentNodeInRound(t *testing.T) {
	for name, c := range map[string]struct{ silent, other int }{"first": {0, 1}, "another": {2, 1}} {
		t.Run(name, func(t *testing.T) {
			nodes := cluster(t, 100, 100, 100, 100)
			r := newRouter(t, nodes...)
			r.rounds.pause = time.Minute
			create := func(name string, among ...*fake) chan error {
				q, ended := request(name, 10), make(chan error, 1)
				q.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: on(among[0].name, among[1].name)}
				go func() {
					_, err := r.CreateVolume(t.Context(), q)
					ended <- err
				}()
				return ended
			}
			asked, resume := stallFirst(nodes[c.other])
			former := create("former", nodes[1], nodes[3])
			<-asked
			silent, answer := stallFirst(nodes[c.silent])
			delayed, quick := create("delayed", nodes[c.silent], nodes[c.other]), create("quick", nodes[1], nodes[3])
			eventually(t, "two claims wait", func() bool { return r.rounds.count() == 2 })
			close(resume)
			wantCode(t, "the round before", <-former, codes.OK)
			<-silent
			wantCode(t, "the claim that does not need the node", <-quick, codes.OK)
			select {
			case err := <-delayed:
				t.Errorf("the other claim did not wait: %v", err)
			default:
			}
			close(answer)
			wantCode(t, "the other claim", <-delayed, codes.OK)
		})
	}
}

// TestRounds_callerLeaves: a caller that leaves while its question waits is not asked
// for.
func TestRounds_callerLeaves(t *testing.T) {
	nodes := cluster(t, 100, 100)
	r := newRouter(t, nodes...)
	r.rounds.pause = time.Minute
	asked, resume := stallFirst(nodes[0])
	ended := make(chan error)
	go func() {
		_, err := r.CreateVolume(t.Context(), request("v", 10))
		ended <- err
	}()
	<-asked
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		_, err := r.CreateVolume(ctx, request("w", 10))
		gone <- err
	}()
	eventually(t, "the second claim waits", func() bool { return r.rounds.count() == 1 })
	leave()
	wantCode(t, "the claim that left", <-gone, codes.Canceled)
	close(resume)
	wantCode(t, "the first claim", <-ended, codes.OK)
	if got := nodes[1].requests("look:CreateVolume"); got != 1 {
		t.Errorf("the second node was asked for %d names", got)
	}
}

// TestRooms_known: a node's room counts for a while without the volumes that were
// placed there, and is asked again after that while, after a failure, and if another
// process answers there.
func TestRooms_known(t *testing.T) {
	nodes := cluster(t, 100, 80)
	var ahead atomic.Int64
	begin := time.Now()
	r := routerOf(t, Options{Clock: func() time.Time { return begin.Add(time.Duration(ahead.Load())) }}, nodes...)
	place := func(name string, bytes int64, want string) {
		t.Helper()
		if _, err := r.CreateVolume(t.Context(), request(name, bytes)); err != nil {
			t.Fatal(err)
		}
		if got := where(name, nodes); !slices.Equal(got, []string{want}) {
			t.Errorf("%s is on %v, want %s", name, got, want)
		}
	}
	asked := func(want int) {
		t.Helper()
		if got := nodes[0].requests("GetCapacity"); got != want {
			t.Errorf("the room was asked %d times, want %d", got, want)
		}
	}
	place("a", 30, "n1") // 70, 80
	place("b", 20, "n2") // 70, 60
	asked(1)
	nodes[1].setRoom(1000)
	place("c", 5, "n1")
	asked(1)
	ahead.Store(int64(roomAge))
	place("d", 5, "n2")
	asked(2)
	nodes[1].setRoom(1)
	_, err := r.CreateVolume(t.Context(), request("e", 40))
	wantCode(t, "the room is gone", err, codes.ResourceExhausted)
	place("e", 40, "n1")
	r.SetNodes([]Node{nodes[0].node(), {Name: "n2", Instance: "another", Addresses: []string{nodes[1].address}}})
	nodes[1].setRoom(2000)
	place("f", 5, "n2")
}

// TestRooms_error: the error of a node counts for a moment only. After that the node is
// asked again, and claims that had no other node are placed.
func TestRooms_error(t *testing.T) {
	nodes := cluster(t, 100, 80)
	var ahead atomic.Int64
	begin := time.Now()
	r := routerOf(t, Options{Clock: func() time.Time { return begin.Add(time.Duration(ahead.Load())) }}, nodes...)
	for _, n := range nodes {
		n.onBefore(func(_ context.Context, method string) error {
			if method == "GetCapacity" {
				return unavailable("not now")
			}
			return nil
		})
	}
	for range 2 {
		_, err := r.CreateVolume(t.Context(), request("a", 10))
		wantCode(t, "no room is known", err, codes.Unavailable)
	}
	if got := nodes[0].requests("GetCapacity"); got != 1 {
		t.Errorf("the room was asked %d times", got)
	}
	for _, n := range nodes {
		n.onBefore(nil)
	}
	ahead.Store(int64(errorAge))
	_, err := r.CreateVolume(t.Context(), request("a", 10))
	wantCode(t, "asked again", err, codes.OK)
}

// TestRooms_forgotten: what is known of one kind's rooms goes when it is old, though
// only another kind is asked for. It holds the connections to former processes.
func TestRooms_forgotten(t *testing.T) {
	nodes := cluster(t, 100, 80)
	var ahead atomic.Int64
	begin := time.Now()
	r := routerOf(t, Options{Clock: func() time.Time { return begin.Add(time.Duration(ahead.Load())) }}, nodes...)
	for _, pool := range []string{"a", "b"} {
		q := request(pool, 1)
		q.Parameters = map[string]string{"pool": pool}
		if _, err := r.CreateVolume(t.Context(), q); err != nil {
			t.Fatal(err)
		}
		ahead.Add(int64(roomAge))
	}
	known := 0
	for _, k := range r.rooms.kinds {
		known += len(k.at)
	}
	if known != len(nodes) {
		t.Errorf("%d rooms are known, want those of the last kind", known)
	}
}

// TestRooms_manyKinds: the router keeps the rooms of a bounded number of kinds.
func TestRooms_manyKinds(t *testing.T) {
	nodes := cluster(t, 1000, 900)
	r := newRouter(t, nodes...)
	for i := range maxKinds + 2 {
		q := request(fmt.Sprintf("v%d", i), 1)
		q.Parameters = map[string]string{"pool": fmt.Sprint(i)}
		if _, err := r.CreateVolume(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(r.rooms.kinds); got > maxKinds {
		t.Errorf("%d kinds", got)
	}
}

// TestCapabilities_once: each process is asked once for its capabilities.
func TestCapabilities_once(t *testing.T) {
	nodes := cluster(t, 1, 1)
	r := newRouter(t, nodes...)
	for range 3 {
		if a, err := r.ControllerGetCapabilities(t.Context(), &csi.ControllerGetCapabilitiesRequest{}); err != nil || len(a.GetCapabilities()) != 1 {
			t.Errorf("%v, %v", a, err)
		}
		if a, err := r.GetPluginCapabilities(t.Context(), &csi.GetPluginCapabilitiesRequest{}); err != nil || len(a.GetCapabilities()) != 1 {
			t.Errorf("%v, %v", a, err)
		}
	}
	for _, method := range []string{"ControllerGetCapabilities", "GetPluginCapabilities"} {
		if got := nodes[0].requests(method); got != 1 {
			t.Errorf("%s: %d times", method, got)
		}
	}
}
