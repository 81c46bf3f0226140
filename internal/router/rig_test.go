package router

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// TestMain fails if a test leaves a goroutine running.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newRouter returns a router that knows the given nodes as ready.
func newRouter(t *testing.T, nodes ...*fake) *Router {
	t.Helper()
	return routerOf(t, Options{}, nodes...)
}

func routerOf(t *testing.T, o Options, nodes ...*fake) *Router {
	t.Helper()
	o.Credentials = func(string) credentials.TransportCredentials { return insecure.NewCredentials() }
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	r.SetNodes(nodesOf(nodes...))
	return r
}

func nodesOf(fakes ...*fake) []Node {
	list := []Node{}
	for _, f := range fakes {
		list = append(list, f.node())
	}
	return list
}

// cluster returns fakes n1, n2, … with that room.
func cluster(t *testing.T, room ...int64) []*fake {
	t.Helper()
	var list []*fake
	for i, r := range room {
		list = append(list, newFake(t, fmt.Sprintf("n%d", i+1), r))
	}
	return list
}

// on returns the topologies of nodes.
func on(nodes ...string) []*csi.Topology {
	var list []*csi.Topology
	for _, n := range nodes {
		list = append(list, &csi.Topology{Segments: map[string]string{handle.TopologyKey: n}})
	}
	return list
}

// request returns a CreateVolumeRequest of so many bytes.
func request(name string, bytes int64) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: bytes}}
}

// where returns the nodes that have a volume of that name.
func where(name string, nodes []*fake) (list []string) {
	for _, f := range nodes {
		if f.has(name) {
			list = append(list, f.name)
		}
	}
	return list
}

func wantCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if status.Code(toStatus(err)) != want {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it never happens that", what)
		}
	}
}

// claims is a Claims of fixed content.
type claims map[string]Claim

var errNoAPI = errors.New("the API server does not answer")

func (c claims) Claim(_ context.Context, namespace, name string) (Claim, bool, error) {
	if namespace == "broken" {
		return Claim{}, false, errNoAPI
	}
	claim, ok := c[namespace+"/"+name]
	return claim, ok, nil
}
