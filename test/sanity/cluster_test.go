//go:build cluster

package sanity

import (
	"context"
	"os"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// TestSanity_ofCluster: csi-sanity passes on a node of a cluster, against the
// controller role and the node's own role. test/e2e puts the sockets and a directory
// below the kubelet's into the environment.
func TestSanity_ofCluster(t *testing.T) {
	node, controller, dir := os.Getenv("SANITY_NODE"), os.Getenv("SANITY_CONTROLLER"), os.Getenv("SANITY_DIR")
	if node == "" || controller == "" || dir == "" {
		t.Fatal("SANITY_NODE, SANITY_CONTROLLER and SANITY_DIR must be set")
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	topology := topologyOf(t, node)
	// The suite stages on this node every volume that it creates. Without a
	// topology in the request the router may choose another node.
	here := func(ctx context.Context, method string, request, reply any, c *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		if r, ok := request.(*csi.CreateVolumeRequest); ok && r.AccessibilityRequirements == nil && r.VolumeContentSource == nil {
			r.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: []*csi.Topology{topology}, Preferred: []*csi.Topology{topology}}
		}
		return invoke(ctx, method, request, reply, c, options...)
	}
	run(t, node, controller, dir, here)
}

func topologyOf(t *testing.T, node string) *csi.Topology {
	t.Helper()
	c, err := grpc.NewClient(node, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	info, err := csi.NewNodeClient(c).NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return info.AccessibleTopology
}
