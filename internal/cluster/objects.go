package cluster

import (
	"cmp"
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/pager"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// Clients of the Kubernetes API.
type Clients struct {
	Kubernetes kubernetes.Interface
	Dynamic    dynamic.Interface // for snapshots, whose types are not Kubernetes' own
}

// Object is a Kubernetes object that represents a volume, a snapshot or a node's room.
type Object struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	ID        string `json:"id,omitempty"`     // of the volume or snapshot
	UsedBy    string `json:"usedBy,omitempty"` // namespace/name of the claim or VolumeSnapshot
}

// Kinds of objects.
const (
	KindVolume   = "PersistentVolume"
	KindSnapshot = "VolumeSnapshotContent"
	KindCapacity = "CSIStorageCapacity"
)

var snapshotContents = schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshotcontents"}

// Volumes returns the driver's PersistentVolumes.
func (c Clients) Volumes(ctx context.Context) (list []Object, err error) {
	pages := pager.New(func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		return c.Kubernetes.CoreV1().PersistentVolumes().List(ctx, o)
	})
	err = pages.EachListItem(ctx, metav1.ListOptions{}, func(o runtime.Object) error {
		v := o.(*corev1.PersistentVolume)
		if v.Spec.CSI == nil || v.Spec.CSI.Driver != handle.Driver {
			return nil
		}
		x := Object{Kind: KindVolume, Name: v.Name, UID: string(v.UID), ID: v.Spec.CSI.VolumeHandle}
		if r := v.Spec.ClaimRef; r != nil {
			x.UsedBy = r.Namespace + "/" + r.Name
		}
		list = append(list, x)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list persistent volumes: %w", err)
	}
	return list, nil
}

// Snapshots returns the driver's VolumeSnapshotContents; none if the cluster has no
// type for them. cut reports by object name whether the snapshot was taken. Until
// then the object's ID is the id of the source volume.
func (c Clients) Snapshots(ctx context.Context) (list []Object, cut map[string]bool, err error) {
	cut = map[string]bool{}
	pages := pager.New(func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		return c.Dynamic.Resource(snapshotContents).List(ctx, o)
	})
	err = pages.EachListItem(ctx, metav1.ListOptions{}, func(o runtime.Object) error {
		s := o.(*unstructured.Unstructured)
		text := func(path ...string) string {
			v, _, _ := unstructured.NestedString(s.Object, path...)
			return v
		}
		if text("spec", "driver") != handle.Driver {
			return nil
		}
		id := cmp.Or(text("status", "snapshotHandle"), text("spec", "source", "snapshotHandle"))
		x := Object{Kind: KindSnapshot, Name: s.GetName(), UID: string(s.GetUID()), ID: cmp.Or(id, text("spec", "source", "volumeHandle"))}
		if name := text("spec", "volumeSnapshotRef", "name"); name != "" {
			x.UsedBy = text("spec", "volumeSnapshotRef", "namespace") + "/" + name
		}
		cut[x.Name] = id != ""
		list = append(list, x)
		return nil
	})
	if apierrors.IsNotFound(err) {
		return nil, cut, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list volume snapshot contents: %w", err)
	}
	return list, cut, nil
}

// Capacities returns the objects that tell the scheduler how much room the node with
// that short name has.
func (c Clients) Capacities(ctx context.Context, short string) ([]Object, error) {
	all, err := c.Kubernetes.StorageV1().CSIStorageCapacities(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
		LabelSelector: "csi.storage.k8s.io/drivername=" + handle.Driver,
	})
	if err != nil {
		return nil, fmt.Errorf("list storage capacities: %w", err)
	}
	var list []Object
	for _, s := range all.Items {
		if s.NodeTopology != nil && s.NodeTopology.MatchLabels[handle.TopologyKey] == short {
			list = append(list, Object{Kind: KindCapacity, Namespace: s.Namespace, Name: s.Name, UID: string(s.UID)})
		}
	}
	return list, nil
}

// ShortNames returns the short names of all nodes of the cluster.
func (c Clients) ShortNames(ctx context.Context) (map[string]bool, error) {
	all, err := c.Kubernetes.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	names := map[string]bool{}
	for _, n := range all.Items {
		names[handle.ShortNode(n.Name)] = true
	}
	return names, nil
}
