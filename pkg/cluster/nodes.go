package cluster

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/handle"
)

// Node is a node that runs the driver's node role, or has run it: the kubelet
// gave it the driver's topology label then, and does not take that away.
type Node struct {
	Name string // full
	UID  string // of the driver's pod there; "" if there is none
	IPs  []string
	// Ready: the pod is ready and not about to end. IPs is empty otherwise.
	Ready bool
	// NotReady is since when the only pod is not ready; zero if it is, if there
	// is no pod, or if it is about to end and may still be at work.
	NotReady time.Time
}

// NodePods tells which pods are the driver's node role.
type NodePods struct {
	Namespace string
	Selector  string // of labels
	DaemonSet string // that owns them
}

// WatchNodes calls changed with all nodes: when they are known, and then
// whenever one has changed, until ctx ends. Calls do not overlap.
func WatchNodes(ctx context.Context, client kubernetes.Interface, p NodePods, changed func([]Node)) error {
	if _, err := labels.Parse(p.Selector); err != nil {
		return err
	}
	podFactory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(p.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = p.Selector }), informers.WithTransform(forgetManagers))
	nodeFactory := informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = handle.TopologyKey }), informers.WithTransform(nameOnly))
	defer podFactory.Shutdown()
	defer nodeFactory.Shutdown()
	ctx, stop := context.WithCancel(ctx) // before Shutdown waits for the informers
	defer stop()

	poke := make(chan struct{}, 1)
	notify := func() {
		select {
		case poke <- struct{}{}:
		default: // one is waiting
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { notify() }, UpdateFunc: func(any, any) { notify() }, DeleteFunc: func(any) { notify() },
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

// forgetManagers drops what nobody reads and takes most of an object's memory.
func forgetManagers(object any) (any, error) {
	if o, err := meta.Accessor(object); err == nil {
		o.SetManagedFields(nil)
	}
	return object, nil
}

// nameOnly keeps of a Node object what nodesOf reads.
func nameOnly(object any) (any, error) {
	if n, ok := object.(*corev1.Node); ok {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Labels: n.Labels}}, nil
	}
	return object, nil
}

// nodesOf returns the nodes of the DaemonSet's pods and those with the topology
// label, sorted by name.
func nodesOf(pods []*corev1.Pod, labelled []*corev1.Node, daemonSet string) []Node {
	on := map[string][]*corev1.Pod{}
	for _, n := range labelled {
		on[n.Name] = nil
	}
	for _, p := range pods {
		if owner := metav1.GetControllerOf(p); owner != nil && owner.Kind == "DaemonSet" && owner.Name == daemonSet && p.Spec.NodeName != "" {
			on[p.Spec.NodeName] = append(on[p.Spec.NodeName], p)
		}
	}
	list := make([]Node, 0, len(on))
	for name, pods := range on {
		list = append(list, nodeOf(name, pods))
	}
	slices.SortFunc(list, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// nodeOf describes a node by its pods; there are two while one is replaced.
func nodeOf(name string, pods []*corev1.Pod) Node {
	for _, p := range pods {
		if ready, _ := podReady(p); ready {
			n := Node{Name: name, UID: string(p.UID), Ready: true}
			for _, ip := range p.Status.PodIPs {
				n.IPs = append(n.IPs, ip.IP)
			}
			return n
		}
	}
	if len(pods) != 1 {
		return Node{Name: name}
	}
	_, since := podReady(pods[0])
	return Node{Name: name, UID: string(pods[0].UID), NotReady: since}
}

// podReady tells whether a pod takes requests, or since when it does not.
func podReady(p *corev1.Pod) (ready bool, notSince time.Time) {
	if p.DeletionTimestamp != nil {
		return false, time.Time{}
	}
	for _, c := range p.Status.Conditions {
		if c.Type != corev1.PodReady {
			continue
		}
		if c.Status == corev1.ConditionTrue {
			return len(p.Status.PodIPs) > 0, time.Time{}
		}
		return false, c.LastTransitionTime.Time
	}
	return false, time.Time{}
}

func countReady(list []Node) (ready int) {
	for _, n := range list {
		if n.Ready {
			ready++
		}
	}
	return ready
}
