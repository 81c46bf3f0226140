package cluster

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// selectedNode is the annotation in which the scheduler tells the provisioner
// which node it chose. Claims of classes that bind immediately lack the annotation.
const selectedNode = "volume.kubernetes.io/selected-node"

// Claim is the part of a PersistentVolumeClaim that the controller uses.
type Claim struct {
	UID          string
	Created      time.Time
	SelectedNode string // "" if the scheduler has not chosen one
	Ephemeral    bool   // a pod owns the claim, which is created and deleted with the pod
}

// FindClaim looks up a claim. It asks the API server instead of a cache: there are
// many claims, and a stale claim would put a volume on the wrong node.
func FindClaim(ctx context.Context, client kubernetes.Interface, namespace, name string) (claim Claim, found bool, err error) {
	c, err := client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return Claim{}, false, nil
	}
	if err != nil {
		return Claim{}, false, fmt.Errorf("look up claim %s/%s: %w", namespace, name, err)
	}
	owner := metav1.GetControllerOf(c)
	return Claim{
		UID: string(c.UID), Created: c.CreationTimestamp.Time, SelectedNode: c.Annotations[selectedNode],
		Ephemeral: owner != nil && owner.APIVersion == "v1" && owner.Kind == "Pod",
	}, true, nil
}
