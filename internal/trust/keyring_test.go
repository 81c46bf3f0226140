package trust

import (
	"context"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// TestKeyring_rotationUnderCalls: no call fails while the CA is replaced and
// two replicas call a node all the time, on open and on new connections.
func TestKeyring_rotationUnderCalls(t *testing.T) {
	client := fake.NewClientset()
	pod := podOf("node-a")
	whose(client, pod, nil)
	leader := controller(t, client, true)
	other := controller(t, client, false)
	eventually(t, "the other replica has a certificate", other.Ready)
	n := serveNode(t, NodeOptions{Name: "node-a"}, plugin{})
	if _, err := client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// Like the kubelet, write the ConfigMap into a file of the pod.
	background(t, func(ctx context.Context) {
		for last := ""; ctx.Err() == nil; time.Sleep(interval) {
			m, err := client.CoreV1().ConfigMaps(namespace).Get(ctx, configMap, metav1.GetOptions{})
			if err == nil && m.Data[fileRoots] != last {
				last = m.Data[fileRoots]
				n.write(t, filepath.Join(n.trustDir, fileRoots), last)
			}
		}
	})
	enrolling(t, leader, n.pods(t))
	eventually(t, "the node is enrolled", n.Enrolled)

	var calls atomic.Int64
	ctx, stop := context.WithCancel(context.Background())
	var callers sync.WaitGroup
	for _, c := range []*Controller{leader, other} {
		open := dial(t, n.address, c.DialOptions("node-a")...)
		callers.Go(func() {
			for ctx.Err() == nil {
				if err := probe(t, open); err != nil {
					t.Errorf("on an open connection: %v", err)
				}
				conn := dial(t, n.address, c.DialOptions("node-a")...)
				if err := probe(t, conn); err != nil {
					t.Errorf("on a new connection: %v", err)
				}
				calls.Add(2)
				time.Sleep(time.Millisecond)
			}
		})
	}
	defer callers.Wait()
	defer stop()

	first, _ := stored(t, client)
	node, own := n.leaf(), first
	rewind := func(annotation string, by time.Duration) {
		t.Helper()
		secrets := client.CoreV1().Secrets(namespace)
		s, err := secrets.Get(t.Context(), secret, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		s.Annotations[annotation] = time.Now().Add(-by).UTC().Format(time.RFC3339)
		if _, err := secrets.Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	during := func(what string, ok func() bool) {
		t.Helper()
		eventually(t, what, ok)
		for target := calls.Load() + 20; calls.Load() < target; time.Sleep(time.Millisecond) {
		}
	}
	rewind(AnnotationRotate, 0)
	during("the next CA is known to the node", func() bool {
		own, _ = stored(t, client)
		n.mu.Lock()
		defer n.mu.Unlock()
		return own.next != nil && !own.published.IsZero() && n.roots.Equal(roots(own.trusted()...))
	})
	if !n.leaf().Equal(node) {
		t.Error("the node has a new certificate too early")
	}
	next := own.next.certificate
	rewind(annotationPublish, DefaultLifetimes.Overlap)
	during("the node's and the replicas' certificates are the next CA's", func() bool {
		for _, c := range []*Controller{leader, other} {
			c.mu.Lock()
			leaf := c.certificate.Leaf
			c.mu.Unlock()
			if leaf.CheckSignatureFrom(next) != nil {
				return false
			}
		}
		return n.leaf().CheckSignatureFrom(next) == nil
	})
	rewind(annotationPromote, DefaultLifetimes.Leaf+DefaultLifetimes.Overlap)
	during("the first CA is forgotten by the node", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.roots.Equal(roots(next))
	})
	if calls.Load() < 60 {
		t.Errorf("only %d calls", calls.Load())
	}
}
