package main

import (
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"

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

// forget-node deletes the objects of one node that is not ready, only with --yes, and
// says in an Event who did it.
func TestForgetNode_onlyThatNode(t *testing.T) {
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
The Node object is still there. Delete it too (kubectl delete node down); otherwise new volumes
that may be placed on any node wait for its driver.
`
	out, err := run(forgetNode{}, "down")
	if want := table("no") + "\nNothing was changed. Use --yes to delete these objects.\n" + node; err != nil || out != want || left() != 3 {
		t.Errorf("dry run: %v\n%s\nwant\n%s", err, out, want)
	}
	if out, err := run(forgetNode{yes: true}, "down"); err != nil || out != table("yes")+node || left() != 2 {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := run(forgetNode{yes: true}, "down"); err != nil || !strings.HasPrefix(out, "Kubernetes has no objects") {
		t.Errorf("again: %v\n%s", err, out)
	}
	if told, err := clients.Kubernetes.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{}); err != nil || len(told.Items) != 1 ||
		told.Items[0].InvolvedObject.Name != "down" || told.Items[0].Reason != "NodeForgotten" || !strings.Contains(told.Items[0].Message, "3 objects") || !strings.Contains(told.Items[0].Message, "(uid ") {
		t.Errorf("the Event: %v, %+v", err, told)
	}
	if _, err := run(forgetNode{yes: true}, "v1:down:fast:a"); err == nil || !strings.Contains(err.Error(), "is the id of a volume or snapshot on node down") {
		t.Errorf("an id instead of a node: %v", err)
	}
	out, err = run(forgetNode{yes: true, output: "json"}, "gone")
	var list []forgotten
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Error(err)
	}
	if err != nil || len(list) != 1 || !list[0].Deleted || list[0].Name != "c" || list[0].Kind != "PersistentVolume" || left() != 1 {
		t.Errorf("a node that Kubernetes does not know: %v\n%s", err, out)
	}
}
