package trust

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

const (
	daemonSet = "csi-dmsnap-node"
	account   = "csi-dmsnap-node"
)

// podOf returns the pod in which a node serves.
func podOf(node string) *corev1.Pod {
	name := "pod-of-" + node
	yes := true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, UID: types.UID(name + "-uid"), Labels: map[string]string{"app": "node"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "DaemonSet", Name: daemonSet, Controller: &yes}},
		},
		Spec:   corev1.PodSpec{NodeName: node, ServiceAccountName: account},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "127.0.0.1"}}},
	}
}

// pods returns the options with which the enroller finds this node.
func (n *testNode) pods(t *testing.T) NodePods {
	t.Helper()
	_, text, err := net.SplitHostPort(n.address)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return NodePods{Selector: "app=node", DaemonSet: daemonSet, ServiceAccount: account, Port: uint16(port)}
}

// whose makes the client answer token reviews with the token of a pod on a node. The
// caller must call it before anything else uses the client.
func whose(client *fake.Clientset, pod *corev1.Pod, change func(*authenticationv1.TokenReviewStatus)) {
	client.PrependReactor("create", "tokenreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
		r := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview).DeepCopy()
		if r.Spec.Token != "token of "+pod.Spec.NodeName {
			r.Status = authenticationv1.TokenReviewStatus{Error: "the token is unknown"}
			return true, r, nil
		}
		r.Status = authenticationv1.TokenReviewStatus{
			Authenticated: true, Audiences: r.Spec.Audiences,
			User: authenticationv1.UserInfo{
				Username: fmt.Sprintf("system:serviceaccount:%s:%s", pod.Namespace, pod.Spec.ServiceAccountName),
				Extra: map[string]authenticationv1.ExtraValue{
					extraPodName: {pod.Name}, extraPodUID: {string(pod.UID)}, extraNodeName: {pod.Spec.NodeName},
				},
			},
		}
		if change != nil {
			change(&r.Status)
		}
		return true, r, nil
	})
}

func enrolling(t *testing.T, c *Controller, nodes NodePods) (stop func()) {
	t.Helper()
	return background(t, func(ctx context.Context) {
		if err := c.Enrol(ctx, nodes); err != nil {
			t.Error(err)
		}
	})
}

// TestEnrol_renews: a node is enrolled once it knows the CA, keeps a good
// certificate, and gets a new certificate after two thirds of its life.
func TestEnrol_renews(t *testing.T) {
	client := fake.NewClientset()
	pod := podOf("node-a")
	whose(client, pod, nil)
	c := controller(t, client, true)
	n := serveNode(t, NodeOptions{Name: "node-a"}, plugin{})
	enrolling(t, c, n.pods(t))
	pods := client.CoreV1().Pods(namespace)
	if _, err := pods.Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// The enroller finds the pod before the CA's certificate reaches it.
	time.Sleep(100 * time.Millisecond)
	if n.Enrolled() {
		t.Fatal("enrolled by somebody it cannot know")
	}
	n.trust(t, c)
	eventually(t, "the node is enrolled", n.Enrolled)
	if err := probe(t, dial(t, n.address, c.DialOptions("node-a")...)); err != nil {
		t.Error(err)
	}
	// The enroller keeps a certificate that is still good.
	former := n.certificate.Leaf
	pod.Labels["touched"] = "yes"
	if _, err := pods.Update(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if !n.leaf().Equal(former) {
		t.Error("enrolled again for no reason")
	}
	// It replaces a certificate after two thirds of its life.
	if err := n.enrol(t, c, "node-a", -c.o.Lifetimes.Leaf*3/4); err != nil {
		t.Fatal(err)
	}
	old := n.leaf()
	pod.Labels["touched"] = "again"
	if _, err := pods.Update(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node has a fresh certificate", func() bool { return !n.leaf().Equal(old) })
	if left := time.Until(n.leaf().NotAfter); left < c.o.Lifetimes.Leaf*9/10 {
		t.Errorf("the new certificate is good for %v", left)
	}
}

// TestEnrol_refuses: a pod that is not the driver's node pod, or a token that
// does not belong to the pod, gets no certificate.
func TestEnrol_refuses(t *testing.T) {
	for name, c := range map[string]struct {
		pod    func(*corev1.Pod)                         // as the API server has it
		review func(*authenticationv1.TokenReviewStatus) // of its token
		reason string
	}{
		"no DaemonSet":      {pod: func(p *corev1.Pod) { p.OwnerReferences = nil }, reason: "DaemonSet"},
		"another DaemonSet": {pod: func(p *corev1.Pod) { p.OwnerReferences[0].Name = "other" }, reason: "DaemonSet"},
		"another account":   {pod: func(p *corev1.Pod) { p.Spec.ServiceAccountName = "other" }, reason: "account other"},
		"another node":      {pod: func(p *corev1.Pod) { p.Spec.NodeName = "node-b" }, reason: "this is node node-a"},
		"token unknown":     {review: func(s *authenticationv1.TokenReviewStatus) { *s = authenticationv1.TokenReviewStatus{Error: "expired"} }, reason: "expired"},
		"token of a pod":    {review: func(s *authenticationv1.TokenReviewStatus) { s.User.Extra[extraPodName] = []string{"pod-b"} }, reason: extraPodName},
		"token of a former": {review: func(s *authenticationv1.TokenReviewStatus) { s.User.Extra[extraPodUID] = []string{"old"} }, reason: extraPodUID},
		"token of no pod":   {review: func(s *authenticationv1.TokenReviewStatus) { s.User.Extra = nil }, reason: "pod-"},
		"token of a node":   {review: func(s *authenticationv1.TokenReviewStatus) { s.User.Extra[extraNodeName] = []string{"node-b"} }, reason: extraNodeName},
		"token of an account": {review: func(s *authenticationv1.TokenReviewStatus) {
			s.User.Username = "system:serviceaccount:csi-dmsnap:other"
		}, reason: "other"},
		"token of a user":   {review: func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "csi-dmsnap-node" }, reason: "belongs to csi-dmsnap-node"},
		"token for others":  {review: func(s *authenticationv1.TokenReviewStatus) { s.Audiences = []string{"https://kubernetes.default.svc"} }, reason: "audiences"},
		"token for anybody": {review: func(s *authenticationv1.TokenReviewStatus) { s.Audiences = nil }, reason: "audiences"},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset()
			pod := podOf("node-a")
			whose(client, pod.DeepCopy(), c.review)
			ctl := controller(t, client, true)
			n := serveNode(t, NodeOptions{Name: "node-a"}, plugin{})
			n.trust(t, ctl)
			if c.pod != nil {
				c.pod(pod)
			}
			e := &enroller{c: ctl, nodes: n.pods(t)}
			k, err := ctl.current()
			if err != nil {
				t.Fatal(err)
			}
			if err = e.checkPod(pod); err == nil {
				_, err = e.certificate(t.Context(), n.address, pod, k)
			}
			if err == nil || !strings.Contains(err.Error(), c.reason) || n.Enrolled() {
				t.Errorf("error %v, enrolled %v", err, n.Enrolled())
			}
		})
	}
}
