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

// TestCapabilities_common: the driver has the capabilities that all ready nodes
// which answer have in common.
func TestCapabilities_common(t *testing.T) {
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
	r = routerOf(t, Options{}) // which remembers no answers
	r.SetNodes([]Node{nodes[0].node(), nodes[1].node()})
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

// TestServe_identity: the served identity, readiness and metrics follow the
// nodes.
func TestServe_identity(t *testing.T) {
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
