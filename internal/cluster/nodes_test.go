package cluster

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var since = metav1.NewTime(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))

// pod returns a ready pod of the DaemonSet on a node.
func pod(name, node string, change ...func(*corev1.Pod)) *corev1.Pod {
	controller := true
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: "ns", UID: types.UID("uid-" + name), Labels: map[string]string{"component": "node"},
			OwnerReferences: []metav1.OwnerReference{{Kind: "DaemonSet", Name: "ours", Controller: &controller}},
		},
		Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{
			PodIPs:     []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: since}},
		},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func notReady(p *corev1.Pod)    { p.Status.Conditions[0].Status = corev1.ConditionFalse }
func terminating(p *corev1.Pod) { p.DeletionTimestamp = &since }
func unlabelled(p *corev1.Pod)  { p.Labels = nil }
func unowned(p *corev1.Pod)     { p.OwnerReferences = nil }
func elsewhere(p *corev1.Pod)   { p.Namespace = "other" }
func starting(p *corev1.Pod)    { p.Status = corev1.PodStatus{} }
func withoutIP(p *corev1.Pod)   { p.Status.PodIPs = nil }
func otherOwner(p *corev1.Pod)  { p.OwnerReferences[0].Name = "theirs" }
func replicaSet(p *corev1.Pod)  { p.OwnerReferences[0].Kind = "ReplicaSet" }
func notOwner(p *corev1.Pod)    { p.OwnerReferences[0].Controller = nil }
func unscheduled(p *corev1.Pod) { p.Spec.NodeName = "" }

func node(name string, labelled bool) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if labelled {
		n.Labels = map[string]string{handle.TopologyKey: handle.ShortNode(name)}
	}
	return n
}

// TestNodesOf_podsAndLabels: the nodes are those with a pod of the DaemonSets
// or with the topology label, each with what its pods and its object say.
func TestNodesOf_podsAndLabels(t *testing.T) {
	ips := []string{"10.0.0.1", "fd00::1"}
	for what, c := range map[string]struct {
		pods  []*corev1.Pod
		nodes []*corev1.Node
		want  []Node
	}{
		"nothing":        {},
		"ready":          {pods: []*corev1.Pod{pod("a", "n1")}, want: []Node{{Name: "n1", UID: "uid-a", IPs: ips, Ready: true}}},
		"label as well":  {pods: []*corev1.Pod{pod("a", "n1")}, nodes: []*corev1.Node{node("n1", true)}, want: []Node{{Name: "n1", UID: "uid-a", IPs: ips, Ready: true}}},
		"label only":     {nodes: []*corev1.Node{node("n2", true), node("n1", true)}, want: []Node{{Name: "n1"}, {Name: "n2"}}},
		"not ready":      {pods: []*corev1.Pod{pod("a", "n1", notReady)}, want: []Node{{Name: "n1", UID: "uid-a", NotReady: since.Time}}},
		"starting":       {pods: []*corev1.Pod{pod("a", "n1", starting)}, want: []Node{{Name: "n1", UID: "uid-a"}}},
		"without an IP":  {pods: []*corev1.Pod{pod("a", "n1", withoutIP)}, want: []Node{{Name: "n1", UID: "uid-a"}}},
		"terminating":    {pods: []*corev1.Pod{pod("a", "n1", terminating)}, want: []Node{{Name: "n1", UID: "uid-a"}}},
		"ends not ready": {pods: []*corev1.Pod{pod("a", "n1", notReady, terminating)}, want: []Node{{Name: "n1", UID: "uid-a"}}},
		"replaced":       {pods: []*corev1.Pod{pod("a", "n1", terminating), pod("b", "n1")}, want: []Node{{Name: "n1", UID: "uid-b", IPs: ips, Ready: true}}},
		"being replaced": {pods: []*corev1.Pod{pod("a", "n1", terminating), pod("b", "n1", notReady)}, want: []Node{{Name: "n1"}}},
		"not ours": {pods: []*corev1.Pod{
			pod("a", "n1", unowned), pod("b", "n2", otherOwner), pod("c", "n3", replicaSet), pod("d", "n4", notOwner), pod("e", "n5", unscheduled),
		}},
	} {
		got := nodesOf(c.pods, c.nodes, "ours")
		if len(got) == 0 && len(c.want) == 0 {
			continue
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", what, got, c.want)
		}
	}
}

// TestMadeBy_severalDaemonSets: several DaemonSets have node pods, and a
// DaemonSet with another name has none.
func TestMadeBy_severalDaemonSets(t *testing.T) {
	for _, c := range []struct {
		sets string
		want bool
	}{{"ours", true}, {"a,ours,b", true}, {"ours-x,our", false}, {"", false}} {
		if got := MadeBy(pod("a", "n1"), c.sets); got != c.want {
			t.Errorf("%q: %t", c.sets, got)
		}
	}
	if MadeBy(pod("a", "n1", unowned), "") || MadeBy(pod("a", "n1", replicaSet), "ours") {
		t.Error("a pod of no DaemonSet is taken for one of the node role")
	}
}

// TestSilentSince_controlPlaneClock: a node is silent since the last of its
// pods was ready, by the clocks of the control plane.
func TestSilentSince_controlPlaneClock(t *testing.T) {
	later := metav1.NewTime(since.Add(time.Hour))
	object := node("n1", true)
	off := node("n1", true)
	off.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, LastTransitionTime: since}}
	ran := func(p *corev1.Pod) {
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 1}}
	}
	made := func(p *corev1.Pod) { p.CreationTimestamp = later }
	evicted := func(p *corev1.Pod) { p.Status = corev1.PodStatus{Phase: corev1.PodFailed} }
	for what, c := range map[string]struct {
		node *corev1.Node
		pods []*corev1.Pod
		want time.Time
	}{
		"ready":                               {node: off, pods: []*corev1.Pod{pod("a", "n1")}},
		"terminating":                         {node: object, pods: []*corev1.Pod{pod("a", "n1", terminating)}, want: since.Time},
		"never started":                       {node: object, pods: []*corev1.Pod{pod("a", "n1", starting, made)}, want: later.Time},
		"never started, replaces one":         {node: object, pods: []*corev1.Pod{pod("a", "n1", terminating), pod("b", "n1", starting, made)}, want: later.Time},
		"fails, by the node's clock":          {node: object, pods: []*corev1.Pod{pod("a", "n1", notReady, ran)}},
		"fails beside one that ends":          {node: object, pods: []*corev1.Pod{pod("a", "n1", terminating), pod("b", "n1", notReady, ran)}},
		"evicted, its states are gone":        {node: object, pods: []*corev1.Pod{pod("a", "n1", evicted, made)}},
		"not ready on a node that is off":     {node: off, pods: []*corev1.Pod{pod("a", "n1", notReady, ran)}, want: since.Time},
		"without an address":                  {node: object, pods: []*corev1.Pod{pod("a", "n1", withoutIP)}},
		"without a pod on a node that is off": {node: off, want: since.Time},
		"without a pod":                       {node: object},
	} {
		got := nodesOf(c.pods, []*corev1.Node{c.node}, "ours")
		if len(got) != 1 || !got[0].Silent.Equal(c.want) {
			t.Errorf("%s: %+v, want %v", what, got, c.want)
		}
	}
}

// TestWatchNodes_changes: every change of the pods and nodes is reported.
func TestWatchNodes_changes(t *testing.T) {
	client := fake.NewClientset(pod("a", "n1"), pod("x", "n8", unlabelled), pod("y", "n9", elsewhere), node("n2", true), node("n3", false))
	ctx, stop := context.WithCancel(t.Context())
	lists := make(chan []Node, 100)
	ended := make(chan error)
	go func() {
		ended <- WatchNodes(ctx, client, NodePods{Namespace: "ns", Selector: "component=node", DaemonSet: "ours"}, func(l []Node) { lists <- l })
	}()
	expect := func(what string, want ...string) {
		t.Helper()
		for end := time.After(20 * time.Second); ; {
			select {
			case l := <-lists:
				var got []string
				for _, n := range l {
					got = append(got, fmt.Sprintf("%s %s %t", n.Name, n.UID, n.Ready))
				}
				if slices.Equal(got, want) {
					return
				}
			case <-end:
				t.Fatalf("%s: it never became %v", what, want)
			}
		}
	}
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	pods, nodes := client.CoreV1().Pods("ns"), client.CoreV1().Nodes()
	expect("at first", "n1 uid-a true", "n2  false")
	must(pods.Create(ctx, pod("b", "n2"), metav1.CreateOptions{}))
	expect("a pod comes", "n1 uid-a true", "n2 uid-b true")
	must(pods.Update(ctx, pod("b", "n2", notReady), metav1.UpdateOptions{}))
	expect("it is not ready", "n1 uid-a true", "n2 uid-b false")
	must(nil, pods.Delete(ctx, "b", metav1.DeleteOptions{}))
	expect("it goes", "n1 uid-a true", "n2  false")
	must(nil, nodes.Delete(ctx, "n2", metav1.DeleteOptions{}))
	expect("its node goes", "n1 uid-a true")
	must(nodes.Create(ctx, node("n4", true), metav1.CreateOptions{}))
	expect("a node comes", "n1 uid-a true", "n4  false")
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := WatchNodes(t.Context(), client, NodePods{Selector: "a in"}, nil); err == nil {
		t.Error("a selector that is none is taken")
	}
}

// TestFindClaim_fields: a claim is found with its node and owner, a missing
// claim is no error, and an API that does not answer is.
func TestFindClaim_fields(t *testing.T) {
	owned := func(name, apiVersion, kind string) *corev1.PersistentVolumeClaim {
		controls := true
		return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, CreationTimestamp: since,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: apiVersion, Kind: kind, Name: "o", Controller: &controls}}}}
	}
	client := fake.NewClientset(owned("pods", "v1", "Pod"), owned("theirs", "example.com/v1", "Pod"), owned("sets", "apps/v1", "StatefulSet"),
		&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "immediate", UID: "1", CreationTimestamp: since}},
		&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "scheduled", UID: "2", CreationTimestamp: since,
			Annotations: map[string]string{"volume.kubernetes.io/selected-node": "n1"}}},
	)
	for name, want := range map[string]Claim{
		"immediate": {UID: "1", Created: since.Time}, "scheduled": {UID: "2", Created: since.Time, SelectedNode: "n1"}, "missing": {},
		"pods": {Created: since.Time, Ephemeral: true}, "theirs": {Created: since.Time}, "sets": {Created: since.Time},
	} {
		got, found, err := FindClaim(t.Context(), client, "ns", name)
		if err != nil || found != (name != "missing") || got != want {
			t.Errorf("%s: %+v, %t, %v", name, got, found, err)
		}
	}
	client.PrependReactor("get", "persistentvolumeclaims", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("no answer")
	})
	if _, _, err := FindClaim(t.Context(), client, "ns", "immediate"); err == nil {
		t.Error("an API that does not answer is taken for one without the claim")
	}
}
