package trust

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/cluster"
)

// NodePods say which pods run the node role.
type NodePods struct {
	Selector       string // of labels, in the controller's namespace
	DaemonSet      string // that owns them; several are separated by commas
	ServiceAccount string // that they run as
	Port           uint16 // where they listen for controllers
}

const (
	enrolWorkers = 16
	enrolLimit   = 30 * time.Second // for one node
	// A node is looked at so many times, as when its pod starts, and then once in
	// enrolPause, however often it changes its pod or shows another certificate.
	enrolBurst = 20
	enrolPause = 3 * time.Second
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// enroller gives certificates to the nodes that need one.
type enroller struct {
	c     *Controller
	nodes NodePods
	pods  cache.SharedIndexInformer
	queue workqueue.TypedRateLimitingInterface[string] // of keys of pods

	mu     sync.Mutex
	limits map[string]flowcontrol.RateLimiter // of looks at a node, by its name
}

// mayLook tells whether a node may be looked at now.
func (e *enroller) mayLook(node string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.limits == nil {
		e.limits = map[string]flowcontrol.RateLimiter{}
	}
	l := e.limits[node]
	if l == nil {
		l = flowcontrol.NewTokenBucketRateLimiter(float32(1/enrolPause.Seconds()), enrolBurst)
		e.limits[node] = l
	}
	return l.TryAccept()
}

// Enrol gives every node a certificate, and another one in time, until ctx
// ends. It is for the elected controller. With certificates from files there
// is nothing to do.
func (c *Controller) Enrol(ctx context.Context, nodes NodePods) error {
	if c.o.CertDir != "" {
		<-ctx.Done()
		return nil
	}
	factory := informers.NewSharedInformerFactoryWithOptions(c.o.Client, 0,
		informers.WithNamespace(c.o.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = nodes.Selector }))
	e := &enroller{
		c: c, nodes: nodes, pods: factory.Core().V1().Pods().Informer(),
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](firstRetry, lastRetry)),
	}
	enqueue := func(object any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object); err == nil {
			e.queue.Add(key)
		}
	}
	if _, err := e.pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    enqueue,
		UpdateFunc: func(_, object any) { enqueue(object) },
	}); err != nil {
		return fmt.Errorf("watch the nodes' pods: %w", err)
	}
	factory.StartWithContext(ctx)
	defer factory.Shutdown()
	var workers sync.WaitGroup
	for range enrolWorkers {
		workers.Go(func() { e.work(ctx) })
	}
	defer workers.Wait()
	defer e.queue.ShutDown()
	for {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-changed: // another CA may be signing now
			for _, key := range e.pods.GetStore().ListKeys() {
				e.queue.Add(key)
			}
		}
	}
}

func (e *enroller) work(ctx context.Context) {
	for {
		key, stop := e.queue.Get()
		if stop {
			return
		}
		again, err := e.attend(ctx, key)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			klog.FromContext(ctx).Error(err, "A node cannot be enrolled, trying again", "pod", key)
			e.queue.AddRateLimited(key)
		default:
			e.queue.Forget(key)
			if again > 0 {
				e.queue.AddAfter(key, again)
			}
		}
		e.queue.Done(key)
	}
}

// attend looks whether a pod needs a certificate, gives it one if so, and says
// when to look again.
func (e *enroller) attend(ctx context.Context, key string) (again time.Duration, err error) {
	object, found, err := e.pods.GetStore().GetByKey(key)
	if err != nil || !found {
		return 0, err
	}
	pod := object.(*corev1.Pod)
	if pod.DeletionTimestamp != nil || pod.Status.Phase != corev1.PodRunning || pod.Spec.NodeName == "" || len(pod.Status.PodIPs) == 0 {
		return 0, nil // it is coming or going: there will be an event
	}
	if err := e.checkPod(pod); err != nil {
		return 0, err
	}
	k, err := e.c.current()
	if err != nil {
		return 0, err
	}
	if !e.mayLook(pod.Spec.NodeName) {
		return enrolPause, nil
	}
	ctx, cancel := context.WithTimeout(ctx, enrolLimit)
	defer cancel()
	var failed []error
	for _, ip := range pod.Status.PodIPs {
		address := net.JoinHostPort(ip.IP, strconv.Itoa(int(e.nodes.Port)))
		leaf, err := e.certificate(ctx, address, pod, k)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		// Not all at the same time after a start of the whole cluster.
		left := max(time.Until(renewal(leaf)), 0)
		return max(left-time.Duration(rand.Int64N(int64(left)/8+1)), time.Second), nil
	}
	return 0, errors.Join(failed...)
}

// certificate returns the one that the node has, or gets.
func (e *enroller) certificate(ctx context.Context, address string, pod *corev1.Pod, k *keyring) (*x509.Certificate, error) {
	chain, err := e.c.peek(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("node %s, connect to %s: %w", pod.Spec.NodeName, address, err)
	}
	// Of the CA that signs now: the previous one's go before it does.
	err = verify(chain, roots(k.current.certificate), x509.ExtKeyUsageServerAuth, NodeIdentity(pod.Spec.NodeName))
	if err == nil && time.Now().Before(renewal(chain[0])) {
		return chain[0], nil
	}
	leaf, err := e.enrol(ctx, address, pod, k)
	if err != nil {
		return nil, fmt.Errorf("node %s at %s: %w", pod.Spec.NodeName, address, err)
	}
	klog.FromContext(ctx).Info("Enrolled a node", "node", pod.Spec.NodeName, "pod", klog.KObj(pod), "until", leaf.NotAfter)
	return leaf, nil
}

// peek returns the certificates that a server shows.
func (c *Controller) peek(ctx context.Context, address string) ([]*x509.Certificate, error) {
	d := tls.Dialer{Config: c.config(func(tls.ConnectionState) error { return nil })}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates, nil
}

// errNotOurs: a pod with our label that our DaemonSet did not make.
var errNotOurs = errors.New("the pod is not a node's")

// checkPod checks what the API server says of a pod that wants to be a node.
func (e *enroller) checkPod(pod *corev1.Pod) error {
	if !cluster.MadeBy(pod, e.nodes.DaemonSet) {
		return fmt.Errorf("%w: it does not belong to DaemonSet %s", errNotOurs, e.nodes.DaemonSet)
	}
	if pod.Spec.ServiceAccountName != e.nodes.ServiceAccount {
		return fmt.Errorf("%w: it runs as service account %s, not %s", errNotOurs, pod.Spec.ServiceAccountName, e.nodes.ServiceAccount)
	}
	return nil
}
