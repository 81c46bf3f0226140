package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/csi-dmsnap/csi-dmsnap/internal/cluster"
)

// oneVolume is a node with one volume.
type oneVolume struct {
	csi.UnimplementedControllerServer
	id string
}

func (o oneVolume) ListVolumes(context.Context, *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	return &csi.ListVolumesResponse{Entries: []*csi.ListVolumesResponse_Entry{{Volume: &csi.Volume{VolumeId: o.id}}}}, nil
}

// The controller finds the pod of a node by the Kubernetes API, forwards calls to it,
// and serves probes and metrics.
func TestServeController_onePod(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	node := grpc.NewServer()
	csi.RegisterControllerServer(node, oneVolume{id: "v1:n1:fast:v"})
	go node.Serve(l)
	defer node.Stop()

	owned := true
	client := fake.NewClientset(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "node-x", Namespace: "ns", UID: "1", Labels: map[string]string{"component": "node"},
			OwnerReferences: []metav1.OwnerReference{{Kind: "DaemonSet", Name: "ours", Controller: &owned}},
		},
		Spec: corev1.PodSpec{NodeName: "n1"},
		Status: corev1.PodStatus{
			PodIPs:     []corev1.PodIP{{IP: "127.0.0.1"}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	})
	socket := filepath.Join(t.TempDir(), "csi.sock")
	address := freeAddress(t)
	f := controllerFlags{
		endpoint: "unix://" + socket, namespace: "ns", nodeSelector: "component=node", nodeDaemonSet: "ours",
		http: address, nodePort: uint16(l.Addr().(*net.TCPAddr).Port),
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- serveController(ctx, f, client, insecurePeers)
	}()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		list, err := csi.NewControllerClient(conn).ListVolumes(t.Context(), &csi.ListVolumesRequest{})
		if err == nil && len(list.GetEntries()) == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%v, %v", list, err)
		}
	}
	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ok", "/metrics": `csi_dmsnap_controller_nodes{ready="true"} 1`} {
		reply, err := http.Get("http://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(reply.Body)
		reply.Body.Close()
		if err != nil || reply.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: %s, %.200s, %v", path, reply.Status, body, err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The controller ends with an error when one of its parts fails.
func TestServeController_partFails(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file") // where a directory is needed
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f := controllerFlags{endpoint: "unix://" + filepath.Join(file, "csi.sock"), nodeSelector: "a=b"}
	err := serveController(t.Context(), f, fake.NewClientset(), insecurePeers)
	if err == nil || !strings.Contains(err.Error(), file) {
		t.Error(err)
	}
}

// insecurePeers has connections without TLS.
var insecurePeers = peers{
	credentials: func(string) credentials.TransportCredentials { return insecure.NewCredentials() },
	ready:       func() bool { return true },
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// The router gets an address for each IP of a node's pod.
func TestRouted_addresses(t *testing.T) {
	since := time.Now()
	got := routed([]cluster.Node{
		{Name: "n1", UID: "1", IPs: []string{"10.0.0.1", "fd00::1"}, Ready: true}, {Name: "n2", UID: "2", NotReady: since}, {Name: "n3"},
	}, 9808)
	if len(got) != 3 || !slices.Equal(got[0].Addresses, []string{"10.0.0.1:9808", "[fd00::1]:9808"}) || got[0].Instance != "1" ||
		len(got[1].Addresses) != 0 || got[1].NotReady != since || got[2].Name != "n3" {
		t.Errorf("%+v", got)
	}
}
