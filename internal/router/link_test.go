package router

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

// get asks for a volume, a short call to one node.
func get(ctx context.Context, r *Router, id string) error {
	_, err := r.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: id})
	return err
}

// TestInvoke_repeatsUnwrittenRequest: after a restart of a node's driver at the
// same address, a call finds the connection broken and is repeated on a new
// connection.
func TestInvoke_repeatsUnwrittenRequest(t *testing.T) {
	n := newFake(t, "n1", 100)
	r := newRouter(t, n)
	wantCode(t, "first call", get(t.Context(), r, n.id("x")), codes.NotFound)
	n.stop()
	wantCode(t, "while it is down", get(t.Context(), r, n.id("x")), codes.Unavailable)
	n.start(n.address)
	wantCode(t, "after the restart", get(t.Context(), r, n.id("x")), codes.NotFound)
	if got := n.requests("ControllerGetVolume"); got != 2 {
		t.Errorf("the node saw %d calls", got)
	}
}

// TestInvoke_neverRepeatsWrittenRequest: a request that may have arrived is not
// repeated.
func TestInvoke_neverRepeatsWrittenRequest(t *testing.T) {
	n := newFake(t, "n1", 100)
	r := newRouter(t, n)
	n.onBefore(func(ctx context.Context, _ string) error {
		n.onBefore(nil)
		n.cut()
		<-ctx.Done()
		return nil
	})
	err := get(t.Context(), r, n.id("x"))
	wantCode(t, "the connection breaks", err, codes.Unavailable)
	if !strings.Contains(err.Error(), "node n1:") {
		t.Errorf("the error does not name the node: %v", err)
	}
	if got := n.requests("ControllerGetVolume"); got != 1 {
		t.Errorf("the node saw %d calls", got)
	}
}

// TestLink_secondAddress: a call reaches a pod at its second address if nobody
// listens at the first.
func TestLink_secondAddress(t *testing.T) {
	n := newFake(t, "n1", 100)
	r := newRouter(t)
	_, port, err := net.SplitHostPort(n.address)
	if err != nil {
		t.Fatal(err)
	}
	node := n.node()
	node.Addresses = []string{net.JoinHostPort("::1", port), n.address} // nobody listens at the first
	r.SetNodes([]Node{node})
	wantCode(t, "the second address", get(t.Context(), r, n.id("x")), codes.NotFound)
}

// TestLink_podReplacedDuringCall: a call that runs while its pod is replaced
// ends normally, the next call goes to the new pod, and the old connection is
// closed.
func TestLink_podReplacedDuringCall(t *testing.T) {
	old, young := newFake(t, "n1", 100), newFake(t, "n1", 100)
	r := newRouter(t, old)
	begun, resume := make(chan struct{}), make(chan struct{})
	old.onBefore(func(context.Context, string) error {
		close(begun)
		<-resume
		return nil
	})
	ended := make(chan error)
	go func() { ended <- get(t.Context(), r, old.id("x")) }()
	<-begun
	r.SetNodes([]Node{old.gone(time.Now())})
	wantCode(t, "no pod is ready", get(t.Context(), r, old.id("x")), codes.Unavailable)
	next := young.node()
	next.Instance = "another pod"
	r.SetNodes([]Node{next})
	wantCode(t, "the new pod", get(t.Context(), r, old.id("x")), codes.NotFound)
	close(resume)
	wantCode(t, "the call to the old pod", <-ended, codes.NotFound)
	eventually(t, "the old connection is closed", func() bool { return old.conns.Load() == 0 })
	if got := young.conns.Load(); got != 1 {
		t.Errorf("%d connections to the new pod", got)
	}
}

// TestLink_onePerProcess: all calls to a process of a node share one
// connection, which is closed when the process is replaced or the router
// closes.
func TestLink_onePerProcess(t *testing.T) {
	nodes := cluster(t, 100, 100)
	r := newRouter(t, nodes...)
	var wg sync.WaitGroup
	for i := range 200 {
		if i%10 == 0 {
			r.SetNodes(nodesOf(nodes...)) // nothing has changed
		}
		wg.Go(func() { wantCode(t, "call", get(t.Context(), r, nodes[i%2].id("x")), codes.NotFound) })
	}
	wg.Wait()
	for _, n := range nodes {
		if got := n.conns.Load(); got != 1 {
			t.Errorf("%d connections to %s", got, n)
		}
	}
	for i := range 50 {
		node := nodes[0].node()
		node.Instance = fmt.Sprint(i)
		r.SetNodes([]Node{node})
		wantCode(t, "call", get(t.Context(), r, nodes[0].id("x")), codes.NotFound)
	}
	eventually(t, "all but one connection are closed", func() bool { return nodes[0].conns.Load() == 1 && nodes[1].conns.Load() == 0 })
	r.Close()
	eventually(t, "all connections are closed", func() bool { return nodes[0].conns.Load() == 0 })
	wantCode(t, "closed", get(t.Context(), r, nodes[0].id("x")), codes.Unavailable)
	r.SetNodes(nodesOf(nodes...))
	wantCode(t, "still closed", get(t.Context(), r, nodes[0].id("x")), codes.Unavailable)
}

// TestInvoke_passesDeadline: the node learns the caller's deadline.
func TestInvoke_passesDeadline(t *testing.T) {
	n := newFake(t, "n1", 100)
	r := newRouter(t, n)
	wantCode(t, "connect", get(t.Context(), r, n.id("x")), codes.NotFound)
	const limit = 2 * time.Second
	seen := make(chan time.Duration, 1)
	n.onBefore(func(ctx context.Context, _ string) error {
		end, _ := ctx.Deadline()
		seen <- time.Until(end)
		<-ctx.Done()
		return ctx.Err()
	})
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	wantCode(t, "past the deadline", get(ctx, r, n.id("x")), codes.DeadlineExceeded)
	if left := <-seen; left <= 0 || left > limit {
		t.Errorf("the node had %v left", left)
	}
}

// TestInvoke_cancelled: a caller that cancels stops waiting, and the node
// finishes what it has begun.
func TestInvoke_cancelled(t *testing.T) {
	n := newFake(t, "n1", 100)
	r := newRouter(t, n)
	begun, noticed := make(chan struct{}), make(chan struct{})
	n.onBefore(func(ctx context.Context, _ string) error {
		close(begun)
		<-ctx.Done()
		close(noticed)
		return nil // as an operation whose intent is on the disk
	})
	ctx, giveUp := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		q := request("v", 10)
		q.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: on("n1")}
		_, err := r.CreateVolume(ctx, q)
		ended <- err
	}()
	<-begun
	giveUp()
	wantCode(t, "cancelled", <-ended, codes.Canceled)
	<-noticed
	eventually(t, "the volume is there", func() bool { return n.has("v") })
}

// TestInvoke_errors: ids that are not this driver's and nodes that are not
// ready have the codes that CSI wants, and the node's own errors pass
// unchanged.
func TestInvoke_errors(t *testing.T) {
	nodes := cluster(t, 100, 100)
	r := newRouter(t, nodes...)
	r.SetNodes([]Node{nodes[0].node(), nodes[1].gone(time.Now())})
	for id, want := range map[string]codes.Code{
		"": codes.InvalidArgument, "some-id": codes.NotFound, "v1:n1:fast:x": codes.NotFound,
		"v1:n2:fast:x": codes.Unavailable, "v1:n3:fast:x": codes.Unavailable,
	} {
		err := get(t.Context(), r, id)
		wantCode(t, "get "+id, err, want)
		if node, _, ok := strings.Cut(strings.TrimPrefix(id, "v1:"), ":"); want == codes.Unavailable && (!ok || !strings.Contains(err.Error(), "node "+node)) {
			t.Errorf("%s: the error does not name the node: %v", id, err)
		}
		deleted := want
		if want == codes.NotFound {
			deleted = codes.OK
		}
		_, err = r.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: id})
		wantCode(t, "delete "+id, err, deleted)
	}
	// The errors of the node pass unchanged, also for a method that it does not know.
	_, err := r.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: nodes[0].id("x")})
	wantCode(t, "unknown to the node", err, codes.Unimplemented)
	for _, c := range []codes.Code{codes.OutOfRange, codes.FailedPrecondition, codes.Aborted, codes.ResourceExhausted, codes.Internal} {
		nodes[0].onBefore(func(context.Context, string) error { return errorf(c, "the node's words") })
		err := get(t.Context(), r, nodes[0].id("x"))
		wantCode(t, "from the node", err, c)
		if !strings.HasSuffix(err.Error(), "desc = the node's words") {
			t.Errorf("%v", err)
		}
	}
	wantCode(t, "before the nodes are known", get(t.Context(), emptyRouter(t), "v1:n1:fast:x"), codes.Unavailable)
}

// emptyRouter returns a router that does not know the nodes yet.
func emptyRouter(t *testing.T) *Router {
	t.Helper()
	r, err := New(Options{Credentials: newRouter(t).fleet.credentials})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestFleet_shortNameClash: of two nodes with the same short name the first
// keeps working.
func TestFleet_shortNameClash(t *testing.T) {
	long := strings.Repeat("a-long-name.", 5)
	n := newFake(t, long, 100)
	r := newRouter(t, n)
	clash := Node{Name: n.short(), Addresses: []string{"127.0.0.1:1"}}
	r.SetNodes([]Node{n.node(), clash})
	wantCode(t, "the first of two", get(t.Context(), r, n.id("x")), codes.NotFound)
}

// TestLink_unused: a node that nobody calls costs no goroutine, whatever the number of
// nodes.
func TestLink_unused(t *testing.T) {
	r := newRouter(t)
	var nodes []Node
	for i := range 1000 {
		nodes = append(nodes, Node{Name: fmt.Sprintf("n%04d", i), Instance: "1", Addresses: []string{"127.0.0.1:1"}})
	}
	before := runtime.NumGoroutine()
	r.SetNodes(nodes)
	if more := runtime.NumGoroutine() - before; more > 10 {
		t.Errorf("%d goroutines for nodes that nobody called", more)
	}
}
