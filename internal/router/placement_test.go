package router

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

const uid = "1f0a8c5e-0000-4000-8000-0123456789ab"

// TestCreateVolume_placement: source, topology, claim and room decide on which
// node a volume is created, and which nodes are asked for its name.
func TestCreateVolume_placement(t *testing.T) {
	snapshotOn := func(node string) *csi.VolumeContentSource {
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: handle.ID{Node: node, Pool: "fast", LV: "s"}.String()},
		}}
	}
	volumeOn := func(id string) *csi.VolumeContentSource {
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id}}}
	}
	all := []string{"n1", "n2", "n3"}
	for _, c := range []struct {
		what                 string
		requisite, preferred []string
		source               *csi.VolumeContentSource
		claim                string // namespace/name
		size                 int64
		node                 string // where the volume must be; "" if nowhere
		code                 codes.Code
		asked                []string // nodes that are asked whether they have the name
	}{
		{what: "neither: the node with most room", node: "n2", asked: all},
		{what: "neither, on no node enough room", size: 400, code: codes.ResourceExhausted, asked: all},
		{what: "requisite: the node with most room of those", requisite: []string{"n1", "n3"}, node: "n3", asked: []string{"n1", "n3"}},
		{what: "requisite of one: nobody is asked", requisite: []string{"n1"}, node: "n1"},
		{what: "requisite of one that is full", requisite: []string{"n1"}, size: 101, code: codes.ResourceExhausted},
		{what: "preferred: the first only", requisite: all, preferred: []string{"n1", "n2", "n3"}, node: "n1"},
		{what: "preferred without requisite", preferred: []string{"n3", "n2"}, node: "n3"},
		{what: "preferred is full: not another one", requisite: all, preferred: []string{"n1", "n2", "n3"}, size: 101, code: codes.ResourceExhausted},
		{what: "preferred is not there", requisite: all, preferred: []string{"n9", "n2"}, code: codes.Unavailable},
		{what: "scheduled claim", requisite: all, preferred: []string{"n1", "n2", "n3"}, claim: "ns/scheduled", node: "n1"},
		{what: "immediate claim with allowedTopologies", requisite: []string{"n1", "n3"}, preferred: []string{"n1", "n3"}, claim: "ns/immediate", node: "n3", asked: []string{"n1", "n3"}},
		{what: "claim is gone", requisite: all, preferred: all, claim: "ns/gone", code: codes.FailedPrecondition, asked: all},
		{what: "claim is another one of the same name", requisite: all, preferred: all, claim: "ns/again", code: codes.FailedPrecondition, asked: all},
		{what: "claim cannot be looked up", requisite: all, preferred: all, claim: "broken/x", code: codes.Unavailable},
		{what: "source: its node", source: snapshotOn("n1"), node: "n1"},
		{what: "source, requisite includes it", source: snapshotOn("n1"), requisite: all, preferred: []string{"n2", "n1"}, node: "n1"},
		{what: "source, requisite excludes it", source: snapshotOn("n1"), requisite: []string{"n2", "n3"}, code: codes.ResourceExhausted},
		{what: "source is a volume", source: volumeOn("v1:n3:fast:v"), node: "n3"},
		{what: "source on an unknown node", source: snapshotOn("n9"), code: codes.Unavailable},
		{what: "source is not ours", source: volumeOn("some-volume"), code: codes.NotFound},
		{what: "source is empty", source: &csi.VolumeContentSource{}, code: codes.InvalidArgument},
	} {
		t.Run(c.what, func(t *testing.T) {
			nodes := cluster(t, 100, 300, 200)
			r := routerOf(t, Options{Claims: claims{
				"ns/scheduled": {UID: uid, SelectedNode: "n1"},
				"ns/immediate": {UID: uid},
				"ns/again":     {UID: strings.Replace(uid, "1f", "2f", 1)},
			}}, nodes...)
			q := request("pvc-"+uid, max(c.size, 10))
			q.VolumeContentSource = c.source
			if c.requisite != nil || c.preferred != nil {
				q.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: on(c.requisite...), Preferred: on(c.preferred...)}
			}
			if namespace, name, ok := strings.Cut(c.claim, "/"); ok {
				q.Parameters = map[string]string{claimNamespace: namespace, claimName: name}
			}
			reply, err := r.CreateVolume(t.Context(), q)
			wantCode(t, "create", err, c.code)
			if c.code == codes.ResourceExhausted && c.source != nil && !strings.Contains(err.Error(), "n1") {
				t.Errorf("the error does not name the source's node: %v", err)
			}
			var want []string
			if c.node != "" {
				want = []string{c.node}
				if at := reply.GetVolume().GetAccessibleTopology(); len(at) != 1 || at[0].GetSegments()[handle.TopologyKey] != c.node {
					t.Errorf("the volume is accessible from %v", at)
				}
			}
			if got := where(q.GetName(), nodes); !slices.Equal(got, want) {
				t.Errorf("it is on %v, want %v", got, want)
			}
			for _, n := range nodes {
				if got, want := n.requests("look:CreateVolume") > 0, slices.Contains(c.asked, n.name); got != want {
					t.Errorf("node %s was asked: %t, want %t", n.name, got, want)
				}
			}
		})
	}
}

// TestCreateVolume_refuses: requests without a name or without this driver's
// topology key are refused, and so are volumes in a cluster without nodes.
func TestCreateVolume_refuses(t *testing.T) {
	r := newRouter(t, cluster(t, 100)...)
	elsewhere := []*csi.Topology{{Segments: map[string]string{"topology.kubernetes.io/zone": "a"}}}
	for _, q := range []*csi.CreateVolumeRequest{
		{},
		{Name: "v", AccessibilityRequirements: &csi.TopologyRequirement{Requisite: elsewhere}},
		{Name: "v", AccessibilityRequirements: &csi.TopologyRequirement{Preferred: elsewhere}},
	} {
		_, err := r.CreateVolume(t.Context(), q)
		wantCode(t, q.String(), err, codes.InvalidArgument)
	}
	_, err := routerOf(t, Options{}).CreateVolume(t.Context(), request("v", 1))
	wantCode(t, "a cluster without nodes", err, codes.Unavailable)
}

// TestCreateVolume_largestVolumeDecides: a volume goes to a node whose largest
// possible volume is large enough, even if another node has more room in total.
func TestCreateVolume_largestVolumeDecides(t *testing.T) {
	nodes := cluster(t, 100, 100, 90)
	nodes[0].room, nodes[1].room = 5, 50
	r := newRouter(t, nodes...)
	if _, err := r.CreateVolume(t.Context(), request("v", 30)); err != nil {
		t.Fatal(err)
	}
	if got := where("v", nodes); !slices.Equal(got, []string{"n3"}) {
		t.Errorf("it is on %v", got)
	}
}

// TestCreateVolume_nodeOutOfService: a node that went out of service before the
// claim was created delays nothing; any other node that does not answer does.
func TestCreateVolume_nodeOutOfService(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		what     string
		notReady time.Duration // before the claim was made, by Kubernetes; negative: after
		seen     time.Duration // the same, by the router
		uid      string
		code     codes.Code
	}{
		{"long before", time.Hour, time.Hour, uid, codes.OK},
		{"just before", time.Minute, time.Hour, uid, codes.Unavailable},
		{"after", -time.Minute, -time.Minute, uid, codes.Unavailable},
		{"long before, the router is new", time.Hour, time.Minute, uid, codes.Unavailable},
		{"long before, another claim", time.Hour, time.Hour, strings.Replace(uid, "1f", "2f", 1), codes.Unavailable},
	} {
		t.Run(c.what, func(t *testing.T) {
			nodes := cluster(t, 100, 300)
			created := now.Add(-time.Second)
			clock := created.Add(-c.seen)
			r := routerOf(t, Options{
				Clock:  func() time.Time { return clock },
				Claims: claims{"ns/c": {UID: uid, Created: created}},
			})
			r.SetNodes([]Node{nodes[0].node(), nodes[1].gone(created.Add(-c.notReady))})
			clock = now
			q := request("pvc-"+c.uid, 10)
			q.Parameters = map[string]string{claimNamespace: "ns", claimName: "c"}
			_, err := r.CreateVolume(t.Context(), q)
			wantCode(t, "create", err, c.code)
		})
	}
}

// TestCreateVolume_outageOfAnotherPod: the date of a pod that never started,
// such as a pod of another DaemonSet, does not count while the router saw a
// former pod ready.
func TestCreateVolume_outageOfAnotherPod(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for code, saw := range map[codes.Code]bool{codes.Unavailable: true, codes.OK: false} {
		nodes := cluster(t, 100, 300)
		clock := now.Add(-2 * time.Hour)
		r := routerOf(t, Options{
			Clock:  func() time.Time { return clock },
			Claims: claims{"ns/c": {UID: uid, Created: now.Add(-30 * time.Minute)}},
		})
		if saw {
			r.SetNodes(nodesOf(nodes...))
		}
		clock = now.Add(-20 * time.Minute) // the claim's volume may have been made until then
		r.SetNodes([]Node{nodes[0].node(), {Name: nodes[1].name, Silent: now.Add(-time.Hour)}})
		clock = now
		q := request("pvc-"+uid, 10)
		q.Parameters = map[string]string{claimNamespace: "ns", claimName: "c"}
		_, err := r.CreateVolume(t.Context(), q)
		wantCode(t, fmt.Sprintf("create, the router saw it ready: %v", saw), err, code)
	}
}

// TestCreateVolume_nodeTakesNoPods: a node to which the scheduler sends no pod
// gets no new volume, and the error says why, but its existing volume is found;
// a node that only some pods tolerate comes last.
func TestCreateVolume_nodeTakesNoPods(t *testing.T) {
	cordoned := func(n Node) Node { n.NoPods = "it is cordoned"; return n }
	tainted := func(n Node) Node { n.PickyPods = "it has the taint a:NoSchedule"; return n }
	for _, c := range []struct {
		what      string
		change    []func(Node) Node // of n1, n2, n3
		size      int64
		requisite []string
		node      string // "" if it is refused with the reason
	}{
		{what: "the roomiest is cordoned", change: []func(Node) Node{nil, cordoned, nil}, node: "n3"},
		{what: "the roomiest is tainted", change: []func(Node) Node{nil, tainted, nil}, node: "n3"},
		{what: "there is room only where it is tainted", change: []func(Node) Node{nil, tainted, nil}, size: 140, node: "n2"},
		{what: "all are tainted", change: []func(Node) Node{tainted, tainted, tainted}, node: "n2"},
		{what: "all are cordoned", change: []func(Node) Node{cordoned, cordoned, cordoned}},
		{what: "all of the class are cordoned", change: []func(Node) Node{cordoned, cordoned, nil}, requisite: []string{"n1", "n2"}},
		{what: "the class's only one is cordoned", change: []func(Node) Node{cordoned, nil, nil}, requisite: []string{"n1"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			nodes := cluster(t, 100, 300, 200)
			r := newRouter(t)
			list := nodesOf(nodes...)
			for i, change := range c.change {
				if change != nil {
					list[i] = change(list[i])
				}
			}
			r.SetNodes(list)
			q := request("v", max(c.size, 10))
			if c.requisite != nil {
				q.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: on(c.requisite...)}
			}
			_, err := r.CreateVolume(t.Context(), q)
			if c.node != "" {
				wantCode(t, "create", err, codes.OK)
				if got := where("v", nodes); !slices.Equal(got, []string{c.node}) {
					t.Errorf("it is on %v, want %s", got, c.node)
				}
				return
			}
			if wantCode(t, "create", err, codes.Unavailable); err == nil || !strings.Contains(err.Error(), "node n1: it is cordoned") || len(where("v", nodes)) > 0 {
				t.Errorf("%v, on %v", err, where("v", nodes))
			}
			// The volume was created before the node was cordoned.
			if _, err := nodes[0].CreateVolume(t.Context(), q); err != nil {
				t.Fatal(err)
			}
			_, err = r.CreateVolume(t.Context(), q)
			wantCode(t, "create again", err, codes.OK)
		})
	}
}
