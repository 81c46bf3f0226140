package main

import (
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/cluster"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

func persistentVolume(name, id string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: handle.Driver, VolumeHandle: id}},
			ClaimRef:               &corev1.ObjectReference{Namespace: "ns", Name: "claim-" + name},
		},
	}
}

func snapshotContent(name, id string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent", "metadata": map[string]any{"name": name},
		"spec": map[string]any{"driver": handle.Driver, "source": map[string]any{"snapshotHandle": id}, "volumeSnapshotRef": map[string]any{"namespace": "ns", "name": "snap"}},
	}}
}

func clusterNode(name string, ready corev1.ConditionStatus) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}},
	}}
}

func fakeClients(objects []runtime.Object, contents ...runtime.Object) cluster.Clients {
	kinds := map[schema.GroupVersionResource]string{
		{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshotcontents"}: "VolumeSnapshotContentList",
	}
	return cluster.Clients{
		Kubernetes: fake.NewClientset(objects...),
		Dynamic:    dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds, contents...),
	}
}

func TestForgetNode(t *testing.T) {
	clients := fakeClients([]runtime.Object{
		clusterNode("up", "True"), clusterNode("down", "Unknown"),
		persistentVolume("a", "v1:down:fast:a"), persistentVolume("b", "v1:up:fast:b"), persistentVolume("c", "v1:gone:fast:c"),
		&storagev1.CSIStorageCapacity{
			ObjectMeta:   metav1.ObjectMeta{Name: "room", Namespace: "driver", Labels: map[string]string{"csi.storage.k8s.io/drivername": handle.Driver}},
			NodeTopology: &metav1.LabelSelector{MatchLabels: map[string]string{handle.TopologyKey: "down"}},
		},
	}, snapshotContent("s", "v1:down:fast:s"))
	run := func(f forgetNode, node string) (string, error) {
		var out strings.Builder
		if f.output == "" {
			f.output = "table"
		}
		err := f.run(t.Context(), &out, clients, node)
		return out.String(), err
	}
	left := func() int {
		t.Helper()
		list, err := clients.Kubernetes.CoreV1().PersistentVolumes().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return len(list.Items)
	}
	if out, err := run(forgetNode{yes: true}, "up"); err == nil || out != "" || left() != 3 {
		t.Errorf("a ready node: %q, %v", out, err)
	}
	if _, err := run(forgetNode{output: "xml"}, "down"); err == nil {
		t.Error("output xml is accepted")
	}
	table := func(done string) string {
		return `KIND                   NAME         ID              USED-BY     DELETED
VolumeSnapshotContent  s            v1:down:fast:s  ns/snap     ` + done + `
PersistentVolume       a            v1:down:fast:a  ns/claim-a  ` + done + `
CSIStorageCapacity     driver/room  -               -           ` + done + "\n"
	}
	node := `
The Node object is still there: delete it too (kubectl delete node down), or new volumes
whose node may be chosen wait for its driver.
`
	out, err := run(forgetNode{}, "down")
	if want := table("no") + "\nNothing was changed. Give --yes to delete these objects.\n" + node; err != nil || out != want || left() != 3 {
		t.Errorf("dry run: %v\n%s\nwant\n%s", err, out, want)
	}
	if out, err := run(forgetNode{yes: true}, "down"); err != nil || out != table("yes")+node || left() != 2 {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := run(forgetNode{yes: true}, "down"); err != nil || !strings.HasPrefix(out, "Nothing in Kubernetes") {
		t.Errorf("again: %v\n%s", err, out)
	}
	if told, err := clients.Kubernetes.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{}); err != nil || len(told.Items) != 1 ||
		told.Items[0].InvolvedObject.Name != "down" || told.Items[0].Reason != "NodeForgotten" || !strings.Contains(told.Items[0].Message, "3 objects") || !strings.Contains(told.Items[0].Message, "(uid ") {
		t.Errorf("who did it: %v, %+v", err, told)
	}
	if _, err := run(forgetNode{yes: true}, "v1:down:fast:a"); err == nil || !strings.Contains(err.Error(), "is an id") {
		t.Errorf("an id for a node: %v", err)
	}
	out, err = run(forgetNode{yes: true, output: "json"}, "gone")
	var list []forgotten
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Error(err)
	}
	if err != nil || len(list) != 1 || !list[0].Deleted || list[0].Name != "c" || list[0].Kind != "PersistentVolume" || left() != 1 {
		t.Errorf("a node that is gone: %v\n%s", err, out)
	}
}

// disks is a controller with fixed lists.
type disks struct {
	csi.UnimplementedControllerServer
	volumes, snapshots []string
	silent             []string
	theirs             []string // volumes that LVM2 made, which are in no list
}

func (d *disks) ControllerGetVolume(_ context.Context, r *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	if slices.Contains(d.theirs, r.GetVolumeId()) {
		return &csi.ControllerGetVolumeResponse{Volume: &csi.Volume{VolumeId: r.GetVolumeId()}}, nil
	}
	if strings.HasPrefix(r.GetVolumeId(), "v1:n3:") {
		return nil, status.Error(codes.Unavailable, "it has gone down since the lists")
	}
	return nil, status.Error(codes.NotFound, "no such volume")
}

func (d *disks) trailer(ctx context.Context) {
	for _, n := range d.silent {
		grpc.SetTrailer(ctx, metadata.Pairs(callmeta.PartialKey, n))
	}
}

func (d *disks) ListVolumes(ctx context.Context, _ *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	d.trailer(ctx)
	a := &csi.ListVolumesResponse{}
	for _, id := range d.volumes {
		a.Entries = append(a.Entries, &csi.ListVolumesResponse_Entry{Volume: &csi.Volume{VolumeId: id}})
	}
	return a, nil
}

func (d *disks) ListSnapshots(ctx context.Context, r *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	if r.GetSnapshotId() != "" {
		if strings.HasPrefix(r.GetSnapshotId(), "v1:n4:gone:") {
			return nil, status.Error(codes.Unavailable, "the pool was here, and is missing")
		}
		return &csi.ListSnapshotsResponse{}, nil
	}
	d.trailer(ctx)
	a := &csi.ListSnapshotsResponse{}
	for _, id := range d.snapshots {
		a.Entries = append(a.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: &csi.Snapshot{SnapshotId: id}})
	}
	if len(d.volumes) > 0 {
		d.volumes = d.volumes[:len(d.volumes)-1] // the last one was just being made: it has an object the next time, or is gone
	}
	return a, nil
}

func TestOrphans(t *testing.T) {
	d := &disks{
		volumes:   []string{"v1:n1:fast:a", "v1:n1:fast:lost", "v1:n1:fast:new"},
		snapshots: []string{"v1:n1:fast:s", "v1:n1:fast:s-lost"},
		silent:    []string{"n2"},
		theirs:    []string{"v1:n1:fast:theirs"},
	}
	socket := filepath.Join(t.TempDir(), "csi.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	csi.RegisterControllerServer(server, d)
	go server.Serve(l)
	defer server.Stop()
	notCut := snapshotContent("not-cut", "")
	clients := fakeClients([]runtime.Object{
		clusterNode("n1", "True"), clusterNode("n2", "True"), clusterNode("n3", "True"), clusterNode("n4", "True"),
		persistentVolume("static", "v1:n1:fast:theirs"), persistentVolume("down", "v1:n3:fast:down"), persistentVolume("a", "v1:n1:fast:a"), persistentVolume("b", "v1:n1:fast:b"), persistentVolume("c", "v1:n2:fast:c"),
		persistentVolume("d", "v1:n9:fast:d"), persistentVolume("e", "by-hand"),
	}, snapshotContent("s", "v1:n1:fast:s"), snapshotContent("t", "v1:n1:fast:t"), snapshotContent("u", "v1:n2:fast:u"), snapshotContent("w", "v1:n4:gone:w"), notCut)

	var out strings.Builder
	err = orphans{output: "table", endpoint: "unix://" + socket}.run(t.Context(), &out, clients)
	if err == nil || !strings.HasSuffix(err.Error(), "no answer from node n2, node n3, node n4") {
		t.Errorf("a list that is not complete: %v", err)
	}
	if want := `KIND      NODE  ID                OBJECT  USED-BY     WHY
volume    n1    v1:n1:fast:lost   -       -           no object in Kubernetes
volume    n1    v1:n1:fast:b      b       ns/claim-b  not on the node
volume    n9    v1:n9:fast:d      d       ns/claim-d  the node is not in the cluster
volume    -     by-hand           e       ns/claim-e  not an id of this driver
snapshot  n1    v1:n1:fast:s-lost -       -           no object in Kubernetes
snapshot  n1    v1:n1:fast:t      t       ns/snap     not on the node
`; strings.Join(strings.Fields(out.String()), " ") != strings.Join(strings.Fields(want), " ") {
		t.Errorf("%s\nwant\n%s", out.String(), want)
	}

	d.volumes, d.snapshots, d.silent = nil, nil, nil
	out.Reset()
	err = orphans{output: "json", endpoint: "unix://" + socket}.run(t.Context(), &out, fakeClients(nil))
	if err != nil || strings.Join(strings.Fields(out.String()), "") != `{"orphans":[]}` {
		t.Errorf("%v\n%s", err, out.String())
	}
	out.Reset()
	if err := (orphans{output: "table", endpoint: "unix://" + socket}).run(t.Context(), &out, fakeClients(nil)); err != nil || out.String() != "No orphans.\n" {
		t.Errorf("%v\n%s", err, out.String())
	}
	if err := (orphans{output: "table", endpoint: "unix://" + socket + ".missing"}).run(t.Context(), &out, fakeClients(nil)); err == nil {
		t.Error("a controller that is not there has no orphans")
	}
}
