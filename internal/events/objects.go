package events

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// objects finds the claims and VolumeSnapshots that users look at.
type objects struct {
	claims, snapshots *index
}

// index finds objects by CSI ids. find fills it when it is asked for an id: reports are
// rare, and watching all volumes would cost more.
type index struct {
	list func(context.Context, map[string]corev1.ObjectReference) error

	mu    sync.Mutex
	known map[string]corev1.ObjectReference
	at    time.Time                    // when known was filled
	pools map[string]map[string]string // an id of known by node and pool; nil until ofPools makes it
}

const (
	indexStale = 5 * time.Minute // after that an object may have been deleted and created again
	indexPause = time.Minute     // between two lists for unknown ids, which a node may invent
	pageLimit  = 500
)

// find returns the object with that id; found is false if there is none.
func (i *index) find(ctx context.Context, id string) (o corev1.ObjectReference, found bool, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	age := time.Since(i.at)
	if o, found = i.known[id]; found && age < indexStale || !found && age < indexPause {
		return o, found, nil
	}
	known := map[string]corev1.ObjectReference{}
	if err := i.list(ctx, known); err != nil {
		return o, false, err
	}
	i.known, i.at, i.pools = known, time.Now(), nil
	o, found = known[id]
	return o, found, nil
}

var contents = schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshotcontents"}

func newObjects(o Options) objects {
	return objects{
		claims: &index{list: func(ctx context.Context, known map[string]corev1.ObjectReference) error {
			return pages(func(options metav1.ListOptions) (string, error) {
				list, err := o.Client.CoreV1().PersistentVolumes().List(ctx, options)
				if err != nil {
					return "", fmt.Errorf("list volumes: %w", err)
				}
				for _, v := range list.Items {
					if s, c := v.Spec.CSI, v.Spec.ClaimRef; s != nil && s.Driver == handle.Driver && c != nil {
						known[s.VolumeHandle] = corev1.ObjectReference{
							APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID,
						}
					}
				}
				return list.Continue, nil
			})
		}},
		snapshots: &index{list: func(ctx context.Context, known map[string]corev1.ObjectReference) error {
			err := pages(func(options metav1.ListOptions) (string, error) {
				list, err := o.Dynamic.Resource(contents).List(ctx, options)
				if err != nil {
					return "", fmt.Errorf("list snapshot contents: %w", err)
				}
				for _, c := range list.Items {
					field := func(path ...string) string {
						s, _, _ := unstructured.NestedString(c.Object, path...)
						return s
					}
					id := field("status", "snapshotHandle")
					if field("spec", "driver") != handle.Driver || id == "" {
						continue
					}
					known[id] = corev1.ObjectReference{
						APIVersion: contents.GroupVersion().String(), Kind: "VolumeSnapshot",
						Namespace: field("spec", "volumeSnapshotRef", "namespace"), Name: field("spec", "volumeSnapshotRef", "name"),
						UID: types.UID(field("spec", "volumeSnapshotRef", "uid")),
					}
				}
				return list.GetContinue(), nil
			})
			if apierrors.IsNotFound(err) {
				return nil // the cluster does not know snapshots
			}
			return err
		}},
	}
}

// pages calls list until there are no more pages.
func pages(list func(metav1.ListOptions) (next string, err error)) error {
	options := metav1.ListOptions{Limit: pageLimit}
	for {
		next, err := list(options)
		if err != nil || next == "" {
			return err
		}
		options.Continue = next
	}
}
