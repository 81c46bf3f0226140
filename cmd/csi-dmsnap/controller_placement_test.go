package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// empty is a node without volumes that has room for any.
type empty struct {
	csi.UnimplementedControllerServer
	name string
	room int64
}

func (e empty) CreateVolume(ctx context.Context, q *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if callmeta.Of(ctx).OnlyExisting {
		return nil, status.Error(codes.NotFound, "no such volume")
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId:           "v1:" + e.name + ":fast:" + q.GetName(),
		AccessibleTopology: []*csi.Topology{{Segments: map[string]string{handle.TopologyKey: e.name}}},
	}}, nil
}

func (e empty) GetCapacity(context.Context, *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	return &csi.GetCapacityResponse{AvailableCapacity: e.room}, nil
}

// The volume of an immediate claim goes to the node with more room, n2, unless
// Kubernetes knows why n2 cannot have the claim's volume; then it goes to n1. The
// claim waits if n2 may have the volume already. The controller has just started,
// as after an upgrade.
func TestServeController_immediateClaim(t *testing.T) {
	const uid = "1f0a8c5e-0000-4000-8000-0123456789ab"
	hour, day := metav1.NewTime(time.Now().Add(-time.Hour)), metav1.NewTime(time.Now().Add(-24*time.Hour))
	recent := metav1.NewTime(time.Now().Add(-time.Minute))
	silent := func(since metav1.Time) func(*corev1.Node) {
		return func(n *corev1.Node) {
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, LastTransitionTime: since}}
		}
	}
	tainted := func(key string, effect corev1.TaintEffect) func(*corev1.Node) {
		return func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: key, Effect: effect}} }
	}
	unready := func(since metav1.Time) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: since}}
			p.Status.Phase = corev1.PodRunning
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
		}
	}
	for what, c := range map[string]struct {
		node func(*corev1.Node) // changes n2
		pods []func(*corev1.Pod)
		want string // the node, or a part of the error
	}{
		"both nodes are ready":          {pods: []func(*corev1.Pod){nil}, want: "n2"},
		"its pod ends, the node is off": {node: silent(hour), pods: []func(*corev1.Pod){func(p *corev1.Pod) { unready(hour)(p); p.DeletionTimestamp = &hour }}, want: "n1"},
		"its pod ends on a live node":   {pods: []func(*corev1.Pod){func(p *corev1.Pod) { p.DeletionTimestamp = &hour }}, want: "n1"},
		"its pod should have ended a moment ago": {pods: []func(*corev1.Pod){func(p *corev1.Pod) { p.DeletionTimestamp = &recent }},
			want: "node n2"},
		"its pod never started": {node: silent(day), pods: []func(*corev1.Pod){func(p *corev1.Pod) { p.Status = corev1.PodStatus{Phase: corev1.PodPending} }}, want: "n1"},
		"its pod never started, is young": {pods: []func(*corev1.Pod){func(p *corev1.Pod) {
			p.Status = corev1.PodStatus{Phase: corev1.PodPending}
			p.CreationTimestamp = recent
		}}, want: "node n2"},
		"its pod cannot pull its image": {pods: []func(*corev1.Pod){func(p *corev1.Pod) {
			unready(hour)(p)
			p.Status.Phase = corev1.PodPending
			p.Status.ContainerStatuses[0].State = corev1.ContainerState{}
		}}, want: "n1"},
		"one pod ends, one never started": {pods: []func(*corev1.Pod){func(p *corev1.Pod) { p.DeletionTimestamp = &hour }, func(p *corev1.Pod) { p.Status = corev1.PodStatus{} }}, want: "n1"},
		"one pod ends, one just stopped":  {pods: []func(*corev1.Pod){func(p *corev1.Pod) { p.DeletionTimestamp = &hour }, unready(recent)}, want: "node n2"},
		"the node is off":                 {node: silent(hour), pods: []func(*corev1.Pod){unready(hour)}, want: "n1"},
		"the node just went off":          {node: silent(recent), pods: []func(*corev1.Pod){unready(recent)}, want: "node n2"},
		"the node is off, without a pod":  {node: silent(hour), want: "n1"},
		"a live node lost its pod":        {want: "node n2"},
		"its pod fails, by its own clock": {pods: []func(*corev1.Pod){unready(hour)}, want: "node n2"},
		"it is cordoned":                  {node: func(n *corev1.Node) { n.Spec.Unschedulable = true }, pods: []func(*corev1.Pod){nil}, want: "n1"},
		"it is under disk pressure":       {node: tainted(corev1.TaintNodeDiskPressure, corev1.TaintEffectNoSchedule), pods: []func(*corev1.Pod){nil}, want: "n1"},
		"it is not ready":                 {node: tainted(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute), pods: []func(*corev1.Pod){nil}, want: "n1"},
		"it is for others":                {node: tainted("dedicated", corev1.TaintEffectNoSchedule), pods: []func(*corev1.Pod){nil}, want: "n1"},
		"it is rather for others":         {node: tainted("dedicated", corev1.TaintEffectPreferNoSchedule), pods: []func(*corev1.Pod){nil}, want: "n1"},
		"it takes no new pods":            {node: tainted(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule), pods: []func(*corev1.Pod){nil}, want: "n1"},
	} {
		t.Run(what, func(t *testing.T) {
			owned := true
			pod := func(name, node, ip string) *corev1.Pod {
				return &corev1.Pod{
					ObjectMeta: metav1.ObjectMeta{
						Name: name, Namespace: "ns", UID: types.UID(name), Labels: map[string]string{"component": "node"}, CreationTimestamp: day,
						OwnerReferences: []metav1.OwnerReference{{Kind: "DaemonSet", Name: "ours", Controller: &owned}},
					},
					Spec: corev1.PodSpec{NodeName: node},
					Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: ip}},
						Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: day}}},
				}
			}
			node := func(name string) *corev1.Node {
				return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{handle.TopologyKey: name}}}
			}
			n2 := node("n2")
			if c.node != nil {
				c.node(n2)
			}
			objects := []runtime.Object{node("n1"), n2, pod("p", "n1", "127.0.0.1"),
				&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c", UID: uid, CreationTimestamp: metav1.Now()}}}
			for i, change := range c.pods {
				p := pod(fmt.Sprint("q", i), "n2", "127.0.0.2")
				if change != nil {
					change(p)
				}
				objects = append(objects, p)
			}
			got, err := placed(t, fake.NewClientset(objects...), &csi.CreateVolumeRequest{
				Name: "pvc-" + uid, Parameters: map[string]string{callmeta.ParameterClaimNamespace: "ns", callmeta.ParameterClaimName: "c"},
			})
			if err != nil {
				got = err.Error()
			}
			if got != c.want && (err == nil || !strings.Contains(got, c.want)) {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// placed starts a controller and returns the node on which it creates a volume. The
// nodes n1 and n2 answer at 127.0.0.1 and 127.0.0.2.
func placed(t *testing.T, client *fake.Clientset, q *csi.CreateVolumeRequest) (string, error) {
	t.Helper()
	_, port, err := net.SplitHostPort(freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	number := uint16(0)
	if _, err := fmt.Sscan(port, &number); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"n1", "n2"} {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.%d:%s", i+1, port))
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		csi.RegisterControllerServer(server, empty{name: name, room: int64(i+1) << 30})
		go server.Serve(l)
		t.Cleanup(server.Stop)
	}
	f := controllerFlags{
		endpoint: "unix://" + filepath.Join(t.TempDir(), "csi.sock"), namespace: "ns", nodeSelector: "component=node", nodeDaemonSet: "ours", nodePort: number,
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- serveController(ctx, f, client, insecurePeers) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	conn, err := grpc.NewClient(f.endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for {
		a, err := csi.NewControllerClient(conn).CreateVolume(t.Context(), q)
		if err != nil && (strings.Contains(err.Error(), "there is no node") || strings.Contains(err.Error(), "not known yet")) {
			time.Sleep(10 * time.Millisecond) // the controller does not know the nodes yet
			continue
		}
		i, _ := handle.Parse(a.GetVolume().GetVolumeId())
		return i.Node, err
	}
}
