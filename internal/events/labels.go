package events

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

const (
	reasonUnlabelled = "TopologyLabelMissing"
	labelAdvice      = ", so the scheduler can place no pod with a volume of this node; restart the driver's pod there to make the kubelet set the label"
)

// labelPause is how long a node may have a ready driver without the topology label.
// The kubelet sets the label when the driver registers. A variable for the tests.
var labelPause = time.Minute

// watchLabels creates an Event for each ready node whose label is wrong for
// labelPause, once until the label is right again. The caller holds e.mu.
func (e *Emitter) watchLabels(nodes []Node) {
	wrong := map[string]bool{}
	for _, n := range nodes {
		if len(n.Addresses) == 0 || n.Unlabelled == "" {
			continue
		}
		wrong[n.Name] = true
		if e.labels[n.Name] == nil {
			e.running.Add(1)
			e.labels[n.Name] = time.AfterFunc(labelPause, func() {
				defer e.running.Done()
				e.emitUnlabelled(n)
			})
		}
	}
	for name, timer := range e.labels {
		if !wrong[name] {
			delete(e.labels, name)
			if timer.Stop() {
				e.running.Done()
			}
		}
	}
}

func (e *Emitter) emitUnlabelled(n Node) {
	ctx, cancel := context.WithTimeout(e.ctx, dealLimit)
	defer cancel()
	about := corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: types.UID(n.Name)} // as the kubelet names nodes
	h := &roleapi.Happening{Epoch: n.Instance, Warning: true}
	if err := e.create(ctx, newEvent(n.Name, h, about, reasonUnlabelled, n.Unlabelled+labelAdvice)); err != nil {
		klog.FromContext(ctx).Error(err, "Could not create an Event for a node without its label", "node", n.Name)
	}
}
