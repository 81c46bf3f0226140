package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// NodeReady reports whether there is a Node object with that name, or with another
// name that has the same short name, and whether Kubernetes considers it ready.
func (c Clients) NodeReady(ctx context.Context, name string) (there, ready bool, err error) {
	all, err := c.Kubernetes.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return false, false, fmt.Errorf("list nodes: %w", err)
	}
	for _, n := range all.Items {
		if handle.ShortNode(n.Name) != handle.ShortNode(name) {
			continue
		}
		there = true
		for _, k := range n.Status.Conditions {
			ready = ready || k.Type == corev1.NodeReady && k.Status == corev1.ConditionTrue
		}
	}
	return there, ready, nil
}

// OfNode returns all objects for the node with that full name: the objects of its
// snapshots, of its volumes, and of its room.
func (c Clients) OfNode(ctx context.Context, name string) ([]Object, error) {
	short := handle.ShortNode(name)
	snapshots, _, err := c.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	volumes, err := c.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	var list []Object
	for _, o := range append(snapshots, volumes...) {
		if i, ok := handle.Parse(o.ID); ok && i.Node == short {
			list = append(list, o)
		}
	}
	capacities, err := c.Capacities(ctx, short)
	return append(list, capacities...), err
}

// Annotations by which csi-snapshotter and the snapshot controller mark work that
// would end only with an answer of the driver.
const (
	beingCreated = "snapshot.storage.kubernetes.io/volumesnapshot-being-created"
	beingDeleted = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
)

// Forget deletes an object without the driver's help. The volume or snapshot itself
// stays as it is, if it still exists. Forget returns nil if the object is gone
// already.
func (c Clients) Forget(ctx context.Context, o Object) error {
	uid := types.UID(o.UID)
	now := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}
	// The deletion comes first, because Kubernetes restores the finalizers of an
	// object that is not being deleted.
	release, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": o.UID, "finalizers": nil, "annotations": map[string]any{beingCreated: nil, beingDeleted: nil},
	}})
	if err != nil {
		return err
	}
	switch o.Kind {
	case KindCapacity:
		err = c.Kubernetes.StorageV1().CSIStorageCapacities(o.Namespace).Delete(ctx, o.Name, now)
	case KindVolume:
		volumes := c.Kubernetes.CoreV1().PersistentVolumes()
		if err = volumes.Delete(ctx, o.Name, now); err == nil {
			_, err = volumes.Patch(ctx, o.Name, types.MergePatchType, release, metav1.PatchOptions{})
		}
	case KindSnapshot:
		contents := c.Dynamic.Resource(snapshotContents)
		if err = contents.Delete(ctx, o.Name, now); err == nil {
			_, err = contents.Patch(ctx, o.Name, types.MergePatchType, release, metav1.PatchOptions{})
		}
	default:
		return fmt.Errorf("%s %s: objects of this kind cannot be forgotten", o.Kind, o.Name)
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("forget %s %s: %w", o.Kind, o.Name, err)
	}
	return nil
}

// Tell creates an Event about a node, for what somebody did by a command.
func (c Clients) Tell(ctx context.Context, node, reason, message string) error {
	now := metav1.Now()
	_, err := c.Kubernetes.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, GenerateName: "csi-dmsnap-" + strings.ToLower(reason) + "-"},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: node, UID: types.UID(node)}, // as the kubelet names nodes
		Reason:         reason, Message: message, Type: corev1.EventTypeWarning, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: corev1.EventSource{Component: handle.Driver}, ReportingController: handle.Driver, ReportingInstance: "forget-node",
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create an Event about node %s: %w", node, err)
	}
	return nil
}
