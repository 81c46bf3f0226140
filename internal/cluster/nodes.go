package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// Node is a node that runs the driver's node role, or has run it. The kubelet gives
// such a node the driver's topology label, and never removes the label.
type Node struct {
	Name string // full
	UID  string // of the driver's pod there; "" if there is none
	IPs  []string
	// Ready is true if the pod is ready and not terminating. Otherwise IPs is empty.
	Ready bool
	// NotReady is the time since which the only pod is not ready. It is zero if the
	// pod is ready or terminating, or if there is no pod. The time may come from the
	// node's own clock.
	NotReady time.Time
	// Silent is a time since which no pod there was ready, by the clocks of
	// Kubernetes' control plane; zero if a pod is ready, or if the time is unknown.
	Silent time.Time
	// NoPods is the reason why the node takes no new pods, PickyPods the reason why
	// it takes only pods that tolerate a taint. Each is "" if there is no such reason.
	NoPods, PickyPods string
	// Unlabelled is the fault of the driver's topology label on the Node object; "" if
	// the label is right, or if there is no such object.
	Unlabelled string
}

// NodePods describes the pods that run the driver's node role.
type NodePods struct {
	Namespace string
	Selector  string // of labels
	DaemonSet string // that owns them; several are separated by commas
}

// WatchNodes calls changed with all nodes, first when it knows the nodes and then
// whenever a node has changed, until ctx ends. Calls do not overlap.
func WatchNodes(ctx context.Context, client kubernetes.Interface, p NodePods, changed func([]Node)) error {
	if _, err := labels.Parse(p.Selector); err != nil {
		return err
	}
	podFactory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(p.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = p.Selector }), informers.WithTransform(forgetManagers))
	nodeFactory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(essence))
	defer podFactory.Shutdown()
	defer nodeFactory.Shutdown()
	ctx, stop := context.WithCancel(ctx) // before Shutdown waits for the informers
	defer stop()

	poke := make(chan struct{}, 1)
	notify := func() {
		select {
		case poke <- struct{}{}:
		default: // a notification is waiting
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { notify() }, DeleteFunc: func(any) { notify() },
		UpdateFunc: func(before, after any) {
			if !unchanged(before, after) {
				notify()
			}
		},
	}
	pods, nodes := podFactory.Core().V1().Pods(), nodeFactory.Core().V1().Nodes()
	for _, i := range []cache.SharedIndexInformer{pods.Informer(), nodes.Informer()} {
		if _, err := i.AddEventHandler(handler); err != nil {
			return err
		}
	}
	podFactory.StartWithContext(ctx)
	nodeFactory.StartWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), pods.Informer().HasSynced, nodes.Informer().HasSynced) {
		return nil // ctx ended
	}
	notify()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-poke:
		}
		podList, err := pods.Lister().List(labels.Everything())
		nodeList, err2 := nodes.Lister().List(labels.Everything())
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		found := nodesOf(podList, nodeList, p.DaemonSet)
		klog.FromContext(ctx).V(2).Info("Nodes", "known", len(found), "ready", countReady(found))
		changed(found)
	}
}

// forgetManagers drops an object's managed fields, which nobody reads and which take
// most of its memory.
func forgetManagers(object any) (any, error) {
	if o, err := meta.Accessor(object); err == nil {
		o.SetManagedFields(nil)
	}
	return object, nil
}

// essence reduces a Node object to the parts that nodesOf reads. Each node sends its
// status again and again, which must not count as a change.
func essence(object any) (any, error) {
	n, ok := object.(*corev1.Node)
	if !ok {
		return object, nil
	}
	kept := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion},
		Spec:       corev1.NodeSpec{Unschedulable: n.Spec.Unschedulable, Taints: n.Spec.Taints},
	}
	if value, ok := n.Labels[handle.TopologyKey]; ok {
		kept.Labels = map[string]string{handle.TopologyKey: value}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			c.LastHeartbeatTime = metav1.Time{}
			kept.Status.Conditions = []corev1.NodeCondition{c}
		}
	}
	return kept, nil
}

// unchanged reports whether two versions of a Node object are the same for nodesOf.
func unchanged(before, after any) bool {
	a, ok := before.(*corev1.Node)
	b, ok2 := after.(*corev1.Node)
	if !ok || !ok2 {
		return false
	}
	x := a.DeepCopy() // the cache owns a
	x.ResourceVersion = b.ResourceVersion
	return equality.Semantic.DeepEqual(x, b)
}

// nodesOf returns the nodes of the DaemonSets' pods and the nodes with the topology
// label, sorted by name.
func nodesOf(pods []*corev1.Pod, nodes []*corev1.Node, daemonSets string) []Node {
	on, objects := map[string][]*corev1.Pod{}, map[string]*corev1.Node{}
	for _, n := range nodes {
		objects[n.Name] = n
		if _, labelled := n.Labels[handle.TopologyKey]; labelled {
			on[n.Name] = nil
		}
	}
	for _, p := range pods {
		if MadeBy(p, daemonSets) && p.Spec.NodeName != "" {
			on[p.Spec.NodeName] = append(on[p.Spec.NodeName], p)
		}
	}
	list := make([]Node, 0, len(on))
	for name, pods := range on {
		list = append(list, nodeOf(name, pods, objects[name]))
	}
	slices.SortFunc(list, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// nodeOf describes a node by its pods and its object. There are two pods while a new
// pod replaces another. The object may be nil.
func nodeOf(name string, pods []*corev1.Pod, object *corev1.Node) Node {
	n := Node{Name: name}
	if object != nil {
		n.NoPods, n.PickyPods = takesPods(object)
		if label, ok := object.Labels[handle.TopologyKey]; !ok {
			n.Unlabelled = "the node has no label " + handle.TopologyKey
		} else if label != handle.ShortNode(name) {
			n.Unlabelled = fmt.Sprintf("the node's label %s is %q, not %q", handle.TopologyKey, label, handle.ShortNode(name))
		}
	}
	for _, p := range pods {
		if podReady(p) {
			n.UID, n.Ready = string(p.UID), true
			for _, ip := range p.Status.PodIPs {
				n.IPs = append(n.IPs, ip.IP)
			}
			return n
		}
	}
	if len(pods) == 1 {
		n.UID = string(pods[0].UID)
		if c := readiness(pods[0]); pods[0].DeletionTimestamp == nil && c.Status != corev1.ConditionTrue {
			n.NotReady = c.LastTransitionTime.Time
		}
	}
	if object != nil {
		n.Silent = silentSince(pods, object)
	}
	return n
}

// MadeBy reports whether a pod belongs to a DaemonSet of the list. Commas separate the
// names in the list.
func MadeBy(p *corev1.Pod, daemonSets string) bool {
	owner := metav1.GetControllerOf(p)
	return owner != nil && owner.Kind == "DaemonSet" && slices.Contains(strings.Split(daemonSets, ","), owner.Name)
}

// podReady reports whether a pod takes requests.
func podReady(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && readiness(p).Status == corev1.ConditionTrue && len(p.Status.PodIPs) > 0
}

// readiness returns a pod's condition Ready; the zero value if it has none.
func readiness(p *corev1.Pod) (ready corev1.PodCondition) {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			ready = c
		}
	}
	return ready
}

// silentSince returns a time since which none of a node's pods was ready: the latest
// of the pods' times, or the kubelet's time if there are no pods. It returns zero if
// the time is unknown. Times that may come from the node's own clock do not count.
func silentSince(pods []*corev1.Pod, node *corev1.Node) (last time.Time) {
	var kubelet time.Time // since then the kubelet is silent, so no pod became ready
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown {
			kubelet = c.LastTransitionTime.Time
		}
	}
	if len(pods) == 0 {
		return kubelet
	}
	for _, p := range pods {
		since := podSilentSince(p, kubelet)
		if since.IsZero() {
			return time.Time{}
		}
		if since.After(last) {
			last = since
		}
	}
	return last
}

// podSilentSince returns a time since which an unready pod was not ready, and no
// earlier pod of its DaemonSet on its node was ready: the earlier pod was gone before
// this pod was created. It returns zero if the time is unknown.
func podSilentSince(p *corev1.Pod, kubelet time.Time) time.Time {
	ready := readiness(p)
	switch {
	case ready.Status != corev1.ConditionTrue && neverRan(p):
		return p.CreationTimestamp.Time
	case ready.Status != corev1.ConditionTrue && !kubelet.IsZero():
		if ready.LastTransitionTime.After(kubelet) {
			return ready.LastTransitionTime.Time
		}
		return kubelet
	case p.DeletionTimestamp != nil: // the time at which it must be gone: nobody sends requests to a pod since its deletion began
		return p.DeletionTimestamp.Time
	}
	return time.Time{}
}

// neverRan reports whether no container of a pod has ever started. Only a pending pod
// counts, because a pod that has ended may have lost the states of its containers.
func neverRan(p *corev1.Pod) bool {
	return (p.Status.Phase == "" || p.Status.Phase == corev1.PodPending) && !slices.ContainsFunc(p.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool {
		return c.RestartCount > 0 || c.State.Running != nil || c.State.Terminated != nil || c.LastTerminationState.Terminated != nil
	})
}

// takesPods returns the reason why a node takes no new pods, and the reason why it
// takes only pods that tolerate a taint; "" if there is no such reason. Kubernetes'
// own taints mark states in which the scheduler sends no ordinary pod to the node.
// People made the other taints, and their pods may tolerate them.
func takesPods(n *corev1.Node) (no, picky string) {
	if n.Spec.Unschedulable {
		return "it is cordoned", ""
	}
	for _, t := range n.Spec.Taints {
		text := "it has the taint " + t.ToString()
		switch own := strings.HasPrefix(t.Key, "node.kubernetes.io/") || strings.HasPrefix(t.Key, "node.cloudprovider.kubernetes.io/"); {
		case own && t.Effect != corev1.TaintEffectPreferNoSchedule:
			return text, ""
		case picky == "":
			picky = text
		}
	}
	return "", picky
}

func countReady(list []Node) (ready int) {
	for _, n := range list {
		if n.Ready {
			ready++
		}
	}
	return ready
}
