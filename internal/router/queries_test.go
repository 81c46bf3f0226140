package router

import (
	"context"
	"fmt"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

func TestCapacity(t *testing.T) {
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

func TestSnapshotNames(t *testing.T) {
	nodes := cluster(t, 1, 1, 1)
	for _, n := range nodes {
		n.fill(1)
	}
	r := newRouter(t, nodes...)
	cut := func(name, source string) error {
		_, err := r.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: source})
		return err
	}
	for i := range 2 {
		wantCode(t, "cut, and again", cut("s", nodes[0].id("v00")), codes.OK)
		wantCode(t, "the same name on another node", cut("s", nodes[1].id("v00")), codes.AlreadyExists)
		wantCode(t, "the same name on the same node", cut("s", nodes[0].id("v01")), codes.AlreadyExists)
		if i == 0 && nodes[0].requests("CreateSnapshot") != 2 {
			t.Errorf("node n1 saw %v", nodes[0].seen)
		}
	}
	for _, c := range []struct {
		name, source string
		want         codes.Code
	}{
		{"", nodes[0].id("v00"), codes.InvalidArgument},
		{"x", "", codes.InvalidArgument},
		{"x", "some-volume", codes.NotFound},
		{"x", "v1:n9:fast:v", codes.Unavailable},
	} {
		wantCode(t, c.name+" of "+c.source, cut(c.name, c.source), c.want)
	}
	// A node that does not answer holds up nobody.
	nodes[2].onBefore(func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() })
	began := time.Now()
	wantCode(t, "another node is stuck", cut("t", nodes[0].id("v00")), codes.OK)
	if took := time.Since(began); took > 4*sameNameLimit {
		t.Errorf("it took %v", took)
	}
	r.SetNodes([]Node{nodes[0].node(), nodes[1].gone(time.Now())})
	wantCode(t, "another node is down", cut("u", nodes[0].id("v00")), codes.OK)
	wantCode(t, "its node is down", cut("w", nodes[1].id("v00")), codes.Unavailable)
	for name, want := range map[string]codes.Code{"x": codes.OK, nodes[1].id("s"): codes.Unavailable, "": codes.InvalidArgument} {
		_, err := r.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: name})
		wantCode(t, "delete "+name, err, want)
	}
}

func TestCapabilities(t *testing.T) {
	nodes := cluster(t, 1, 1, 1)
	expand, clone := csi.ControllerServiceCapability_RPC_EXPAND_VOLUME, csi.ControllerServiceCapability_RPC_CLONE_VOLUME
	nodes[0].capabilities = append(nodes[0].capabilities, expand, clone)
	nodes[1].capabilities = append(nodes[1].capabilities, clone)
	r := newRouter(t, nodes...)
	of := func() string {
		t.Helper()
		a, err := r.ControllerGetCapabilities(t.Context(), &csi.ControllerGetCapabilitiesRequest{})
		if err != nil {
			return err.Error()
		}
		var list []string
		for _, c := range a.GetCapabilities() {
			list = append(list, c.GetRpc().GetType().String())
		}
		return strings.Join(list, " ")
	}
	if got := of(); got != "CREATE_DELETE_VOLUME" {
		t.Errorf("all nodes: %s", got)
	}
	r.SetNodes([]Node{nodes[0].node(), nodes[1].node(), nodes[2].gone(time.Now())})
	if got := of(); got != "CREATE_DELETE_VOLUME CLONE_VOLUME" {
		t.Errorf("the ready nodes: %s", got)
	}
	nodes[1].onBefore(func(context.Context, string) error { return unavailable("x") })
	if got := of(); got != "CREATE_DELETE_VOLUME EXPAND_VOLUME CLONE_VOLUME" {
		t.Errorf("the node that answers: %s", got)
	}
	plugin, err := r.GetPluginCapabilities(t.Context(), &csi.GetPluginCapabilitiesRequest{})
	if err != nil || len(plugin.GetCapabilities()) != 1 || plugin.GetCapabilities()[0].GetService().GetType() != csi.PluginCapability_Service_CONTROLLER_SERVICE {
		t.Errorf("%v, %v", plugin, err)
	}
	r.SetNodes(nil)
	if got := of(); !strings.Contains(got, "Unavailable") {
		t.Errorf("no node: %s", got)
	}
}

func TestServed(t *testing.T) {
	n := newFake(t, "n1", 1)
	registry := prometheus.NewPedanticRegistry()
	var calls []string
	r := routerOf(t, Options{Version: "v1.2.3", Observe: func(ctx context.Context, q any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		a, err := handle(ctx, q)
		calls = append(calls, fmt.Sprint(path.Base(info.FullMethod), " ", status.Code(err)))
		return a, err
	}})
	registry.MustRegister(r.Metrics())
	conn := connect(t, r)
	identity, controller := csi.NewIdentityClient(conn), csi.NewControllerClient(conn)
	ready := func() bool {
		a, err := identity.Probe(t.Context(), &csi.ProbeRequest{})
		return err == nil && a.GetReady().GetValue()
	}
	if ready() {
		t.Error("it is ready without nodes")
	}
	r.SetNodes(append(nodesOf(n), Node{Name: "n2"}))
	if !ready() {
		t.Error("it is not ready with a node")
	}
	info, err := identity.GetPluginInfo(t.Context(), &csi.GetPluginInfoRequest{})
	if err != nil || info.GetName() != handle.Driver || info.GetVendorVersion() != "v1.2.3" {
		t.Errorf("%v, %v", info, err)
	}
	_, err = controller.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: n.id("x")})
	wantCode(t, "get", err, codes.NotFound)
	if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP csi_dmsnap_controller_nodes Nodes that the controller knows, by whether their driver is ready.
# TYPE csi_dmsnap_controller_nodes gauge
csi_dmsnap_controller_nodes{ready="false"} 1
csi_dmsnap_controller_nodes{ready="true"} 1
# HELP csi_dmsnap_controller_partial_lists_total Nodes that were left out of an unfiltered list because they did not answer.
# TYPE csi_dmsnap_controller_partial_lists_total counter
csi_dmsnap_controller_partial_lists_total 0
`), "csi_dmsnap_controller_nodes", "csi_dmsnap_controller_partial_lists_total"); err != nil {
		t.Error(err)
	}
	if got := strings.Join(calls, ", "); got != "Probe OK, Probe OK, GetPluginInfo OK, ControllerGetVolume NotFound" {
		t.Errorf("seen were %s", got)
	}
}
