package router

import (
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// TestGetCapacity_outOfService: a node's room is unavailable during its first
// minute out of service and then 0, and without a topology it is the room of
// all nodes that answer.
func TestGetCapacity_outOfService(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	nodes := cluster(t, 100, 300, 200)
	r := routerOf(t, Options{Clock: func() time.Time { return now }}, nodes...)
	of := func(topology map[string]string) (int64, error) {
		q := &csi.GetCapacityRequest{}
		if topology != nil {
			q.AccessibleTopology = &csi.Topology{Segments: topology}
		}
		a, err := r.GetCapacity(t.Context(), q)
		return a.GetAvailableCapacity(), err
	}
	want := func(what string, topology map[string]string, room int64, code codes.Code) {
		t.Helper()
		got, err := of(topology)
		wantCode(t, what, err, code)
		if got != room {
			t.Errorf("%s: %d, want %d", what, got, room)
		}
	}
	n2 := map[string]string{handle.TopologyKey: "n2"}
	want("one node", n2, 300, codes.OK)
	want("all nodes", nil, 600, codes.OK)
	want("not our topology", map[string]string{"zone": "a"}, 0, codes.OK)
	a, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{})
	if err != nil || a.GetMaximumVolumeSize().GetValue() != 150 {
		t.Errorf("the largest volume on any node: %v, %v", a, err)
	}
	gone := func(since time.Time) { r.SetNodes([]Node{nodes[0].node(), nodes[1].gone(since), nodes[2].node()}) }
	gone(now)
	want("just not ready", n2, 0, codes.Unavailable)
	want("all nodes without it", nil, 300, codes.OK)
	now = now.Add(59 * time.Second)
	want("59 s", n2, 0, codes.Unavailable)
	now = now.Add(time.Second)
	want("60 s", n2, 0, codes.OK)
	if got, err := of(n2); err != nil || got != 0 {
		t.Errorf("%d, %v", got, err)
	}
	r.SetNodes(nodesOf(nodes...))
	want("it is back", n2, 300, codes.OK)
	gone(now.Add(-time.Hour))
	want("as Kubernetes saw it", n2, 0, codes.OK)
	want("a node without a pod", map[string]string{handle.TopologyKey: "n9"}, 0, codes.OK)
	r.SetNodes(nil)
	want("no nodes", nil, 0, codes.Unavailable)
	_, err = emptyRouter(t).GetCapacity(t.Context(), &csi.GetCapacityRequest{AccessibleTopology: &csi.Topology{Segments: n2}})
	wantCode(t, "before the nodes are known", err, codes.Unavailable)
}
