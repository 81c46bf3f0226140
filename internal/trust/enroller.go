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

// NodePods describe the pods that run the node role.
type NodePods struct {
	Selector       string // of labels, in the controller's namespace
	DaemonSet      string // that owns them; several are separated by commas
	ServiceAccount string // that they run as
	Port           uint16 // where they listen for controllers
}

const (
	enrolWorkers = 16
	enrolLimit   = 30 * time.Second // for one node
	// The enroller looks at a node enrolBurst times, enough for the start of its pod,
	// and then once in enrolPause, however often the node changes its pod or shows
	// another certificate.
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

// mayLook reports whether the enroller may look at a node now.
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

// Enrol gives every node a certificate, and a new certificate before the old one
// expires, until ctx ends. Only the elected controller calls it. If certificates
// come from files, Enrol does nothing.
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
		case <-changed: // a new CA may sign now
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
			klog.FromContext(ctx).Error(err, "Could not enrol a node; retrying", "pod", key)
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

// attend gives a pod a certificate if it needs one, and returns after which time to
// look again; 0 if a change of the pod will cause the next look.
func (e *enroller) attend(ctx context.Context, key string) (again time.Duration, err error) {
	object, found, err := e.pods.GetStore().GetByKey(key)
	if err != nil || !found {
		return 0, err
	}
	pod := object.(*corev1.Pod)
	if pod.DeletionTimestamp != nil || pod.Status.Phase != corev1.PodRunning || pod.Spec.NodeName == "" || len(pod.Status.PodIPs) == 0 {
		return 0, nil // the pod is starting or ending: an event will follow
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
		// The random part spreads the nodes after a start of the whole cluster.
		left := max(time.Until(renewal(leaf)), 0)
		return max(left-time.Duration(rand.Int64N(int64(left)/8+1)), time.Second), nil
	}
	return 0, errors.Join(failed...)
}

// certificate returns the node's certificate. It enrols the node if the certificate
// is not good for long enough.
func (e *enroller) certificate(ctx context.Context, address string, pod *corev1.Pod, k *keyring) (*x509.Certificate, error) {
	chain, err := e.c.peek(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("node %s, connect to %s: %w", pod.Spec.NodeName, address, err)
	}
	// Only a certificate of the current CA is good enough, so that all certificates
	// of the previous CA are replaced before it is forgotten.
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

// errNotOurs: a pod has the driver's label, but is not a pod of its DaemonSet or
// runs as another service account.
var errNotOurs = errors.New("the pod is not one of the driver's node pods")

// checkPod checks the API server's description of a pod that claims to be a node's.
// Errors: errNotOurs.
func (e *enroller) checkPod(pod *corev1.Pod) error {
	if !cluster.MadeBy(pod, e.nodes.DaemonSet) {
		return fmt.Errorf("%w: it does not belong to DaemonSet %s", errNotOurs, e.nodes.DaemonSet)
	}
	if pod.Spec.ServiceAccountName != e.nodes.ServiceAccount {
		return fmt.Errorf("%w: it runs as service account %s, not %s", errNotOurs, pod.Spec.ServiceAccountName, e.nodes.ServiceAccount)
	}
	return nil
}
