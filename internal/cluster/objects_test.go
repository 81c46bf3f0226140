package cluster

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

func volume(name, driver, id string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), Finalizers: []string{"kubernetes.io/pv-protection"}},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: id}},
			ClaimRef:               &corev1.ObjectReference{Namespace: "ns", Name: "claim-" + name},
		},
	}
}

// content returns a VolumeSnapshotContent; source and status are its handles.
func content(name, driver string, source map[string]any, status string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
		"metadata": map[string]any{"name": name, "uid": "uid-" + name, "finalizers": []any{"bound-protection"},
			"annotations": map[string]any{beingCreated: "yes", beingDeleted: "yes", "other": "stays"}},
		"spec": map[string]any{"driver": driver, "source": source, "volumeSnapshotRef": map[string]any{"namespace": "ns", "name": "snap-" + name}},
	}}
	if status != "" {
		o.Object["status"] = map[string]any{"snapshotHandle": status}
	}
	return o
}

func capacity(name, driver, node string) *storagev1.CSIStorageCapacity {
	return &storagev1.CSIStorageCapacity{
		ObjectMeta:   metav1.ObjectMeta{Name: name, Namespace: "driver", UID: types.UID("uid-" + name), Labels: map[string]string{"csi.storage.k8s.io/drivername": driver}},
		NodeTopology: &metav1.LabelSelector{MatchLabels: map[string]string{handle.TopologyKey: node}},
	}
}

// clients returns clients of an API that, like the real API, keeps an object until
// its finalizers are removed.
func clients(t *testing.T, objects []runtime.Object, contents ...runtime.Object) Clients {
	t.Helper()
	k := fake.NewClientset(objects...)
	d := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
		map[schema.GroupVersionResource]string{snapshotContents: "VolumeSnapshotContentList"}, contents...)
	keepFinalizers(t, &k.Fake, k.Tracker(), "persistentvolumes")
	keepFinalizers(t, &d.Fake, d.Tracker(), "volumesnapshotcontents")
	return Clients{Kubernetes: k, Dynamic: d}
}

func keepFinalizers(t *testing.T, f *clienttesting.Fake, tracker clienttesting.ObjectTracker, resource string) {
	f.PrependReactor("delete", resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
		action := a.(clienttesting.DeleteActionImpl)
		o, err := tracker.Get(a.GetResource(), "", action.Name)
		if err != nil {
			return true, nil, err
		}
		m, err := meta.Accessor(o)
		if err != nil {
			return true, nil, err
		}
		if uid := action.DeleteOptions.Preconditions.UID; *uid != m.GetUID() {
			return true, nil, apierrors.NewConflict(a.GetResource().GroupResource(), action.Name, errors.New("another uid"))
		}
		if len(m.GetFinalizers()) == 0 {
			return false, nil, nil
		}
		m.SetDeletionTimestamp(&since)
		return true, nil, tracker.Update(a.GetResource(), o, "")
	})
	f.PrependReactor("patch", resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
		action := a.(clienttesting.PatchActionImpl)
		var patch struct {
			Metadata struct {
				UID         string
				Finalizers  *[]string
				Annotations map[string]*string
			}
		}
		if err := json.Unmarshal(action.Patch, &patch); err != nil {
			t.Error(err)
		}
		o, err := tracker.Get(a.GetResource(), "", action.Name)
		if err != nil {
			return true, nil, err
		}
		m, err := meta.Accessor(o)
		if err != nil {
			return true, nil, err
		}
		if m.GetDeletionTimestamp() == nil || patch.Metadata.Finalizers != nil || patch.Metadata.UID != string(m.GetUID()) {
			t.Errorf("%s is patched by %s", action.Name, action.Patch)
		}
		for _, k := range []string{beingCreated, beingDeleted} {
			if v, ok := patch.Metadata.Annotations[k]; !ok || v != nil {
				t.Errorf("%s keeps the annotation %s", action.Name, k)
			}
		}
		return true, o, tracker.Delete(a.GetResource(), "", action.Name)
	})
}

func names(list []Object) (all []string) {
	for _, o := range list {
		all = append(all, o.Kind+" "+o.Name)
	}
	slices.Sort(all)
	return all
}

// TestForget_node: all objects of a node are found and deleted, also
// repeatedly, and the objects of other nodes and drivers stay.
func TestForget_node(t *testing.T) {
	long := "a-node-with-a-name-that-is-too-long-for-an-id.example.org"
	c := clients(t, []runtime.Object{
		volume("a", handle.Driver, "v1:n1:fast:a"), volume("b", handle.Driver, "v1:n2:fast:b"),
		volume("c", "another.driver", "v1:n1:fast:c"), volume("d", handle.Driver, "v1:"+handle.ShortNode(long)+":fast:d"),
		&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "no-csi"}},
		capacity("x", handle.Driver, "n1"), capacity("y", handle.Driver, "n2"), capacity("z", "another.driver", "n1"),
	},
		content("a", handle.Driver, map[string]any{"volumeHandle": "v1:n1:fast:a"}, "v1:n1:fast:s"),
		content("b", handle.Driver, map[string]any{"snapshotHandle": "v1:n1:fast:s2"}, ""),
		content("c", handle.Driver, map[string]any{"volumeHandle": "v1:n1:fast:a"}, ""), // never taken
		content("d", handle.Driver, map[string]any{"volumeHandle": "v1:n2:fast:a"}, "v1:n2:fast:s"),
		content("e", "another.driver", map[string]any{"snapshotHandle": "v1:n1:fast:s2"}, ""),
	)
	found, err := c.OfNode(t.Context(), "n1")
	want := []string{"CSIStorageCapacity x", "PersistentVolume a", "VolumeSnapshotContent a", "VolumeSnapshotContent b", "VolumeSnapshotContent c"}
	if err != nil || !slices.Equal(names(found), want) {
		t.Fatalf("%v, %v", names(found), err)
	}
	for _, o := range found {
		if o.Kind == KindVolume && (o.UsedBy != "ns/claim-a" || o.ID != "v1:n1:fast:a") || o.Kind == KindSnapshot && o.UsedBy != "ns/snap-"+o.Name {
			t.Errorf("%+v", o)
		}
	}
	if found, err := c.OfNode(t.Context(), long); err != nil || !slices.Equal(names(found), []string{"PersistentVolume d"}) {
		t.Errorf("a long name: %v, %v", names(found), err)
	}
	stale := found[0]
	stale.UID = "another"
	if err := c.Forget(t.Context(), stale); err == nil {
		t.Error("an object that took the other's name was deleted")
	}
	for range 2 { // again, when all is gone
		for _, o := range found {
			if err := c.Forget(t.Context(), o); err != nil {
				t.Error(err)
			}
		}
	}
	if rest, err := c.OfNode(t.Context(), "n1"); err != nil || len(rest) != 0 {
		t.Errorf("left are %v, %v", rest, err)
	}
	if rest, err := c.OfNode(t.Context(), "n2"); err != nil || len(rest) != 3 {
		t.Errorf("of another node are left %v, %v", rest, err)
	}
	if err := c.Forget(t.Context(), Object{Kind: "Node", Name: "n1"}); err == nil {
		t.Error("a node was deleted")
	}
}

// TestSnapshots_noTypes: a cluster without the snapshot types has no snapshots.
func TestSnapshots_noTypes(t *testing.T) {
	c := clients(t, nil)
	c.Dynamic.(*dynamicfake.FakeDynamicClient).PrependReactor("list", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewNotFound(a.GetResource().GroupResource(), "")
	})
	if list, _, err := c.Snapshots(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// TestNodeReady_conditions: a node is there if an object has its short name,
// and ready if Kubernetes says so.
func TestNodeReady_conditions(t *testing.T) {
	long := "a-node-with-a-name-that-is-too-long-for-an-id.example.org"
	status := func(name string, s corev1.ConditionStatus) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeDiskPressure, Status: "True"}, {Type: corev1.NodeReady, Status: s}},
		}}
	}
	c := clients(t, []runtime.Object{status("up", "True"), status("down", "False"), status("lost", "Unknown"), status(long, "True"), node("new", false)})
	for name, want := range map[string][2]bool{
		"up": {true, true}, "down": {true, false}, "lost": {true, false}, "new": {true, false}, "gone": {false, false},
		long: {true, true}, handle.ShortNode(long): {true, true},
	} {
		there, ready, err := c.NodeReady(t.Context(), name)
		if err != nil || there != want[0] || ready != want[1] {
			t.Errorf("%s: %t, %t, %v", name, there, ready, err)
		}
	}
	if all, err := c.ShortNames(t.Context()); err != nil || len(all) != 5 || !all[handle.ShortNode(long)] {
		t.Errorf("%v, %v", all, err)
	}
}
