package trust

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
)

// ControllerOptions are the places where a controller keeps keys and certificates.
type ControllerOptions struct {
	Client    kubernetes.Interface
	Namespace string    // of the Secret and the ConfigMap
	Secret    string    // the CA's key, for controllers only
	ConfigMap string    // the CA's public certificates, for the nodes
	CertDir   string    // if not empty, has tls.crt, tls.key and ca.crt, which replace Secret and ConfigMap
	Lifetimes Lifetimes // DefaultLifetimes if zero
}

// Controller is a controller's side of the trust. Every replica has one, and makes
// its own client certificate with the CA's key. It is safe for concurrent use.
type Controller struct {
	o     ControllerOptions
	files *watched // with CertDir

	mu          sync.Mutex
	keyring     *keyring // nil until read, and with CertDir
	certificate *tls.Certificate
	roots       *x509.CertPool
	changed     chan struct{} // closed when the above change
}

// NewController returns a controller that has no certificate until Run
// finds the Secret.
func NewController(ctx context.Context, o ControllerOptions) *Controller {
	if o.Lifetimes == (Lifetimes{}) {
		o.Lifetimes = DefaultLifetimes
	}
	c := &Controller{o: o, changed: make(chan struct{})}
	if o.CertDir != "" {
		c.files = certDir(o.CertDir, ControllerIdentity, x509.ExtKeyUsageClientAuth, func(own *tls.Certificate, roots *x509.CertPool) {
			c.set(nil, own, roots)
		})
		c.files.look(ctx)
	}
	return c
}

func (c *Controller) set(k *keyring, own *tls.Certificate, roots *x509.CertPool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keyring, c.certificate, c.roots = k, own, roots
	close(c.changed)
	c.changed = make(chan struct{})
}

// Ready reports whether this replica has a certificate to talk to nodes with.
func (c *Controller) Ready() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.certificate != nil
}

// Run watches the Secret, or the files, and keeps this replica's certificate valid,
// until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	if c.files != nil {
		c.files.run(ctx)
		return nil
	}
	secrets, stop, err := c.watchSecret(ctx)
	if err != nil {
		return err
	}
	defer stop()
	for {
		renew := time.Minute
		c.mu.Lock()
		if c.certificate != nil {
			renew = max(time.Until(renewal(c.certificate.Leaf)), time.Second)
		}
		k := c.keyring
		c.mu.Unlock()
		timer := time.NewTimer(renew)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case s := <-secrets:
			if k, err = decodeKeyring(s); err != nil {
				klog.FromContext(ctx).Error(err, "The CA cannot be used")
				k = nil // the previous certificate stays in use
			}
		case <-timer.C:
		}
		timer.Stop()
		if k == nil {
			continue
		}
		if err := c.use(k); err != nil {
			klog.FromContext(ctx).Error(err, "Could not make a certificate for this controller")
		}
	}
}

// use makes a new certificate for this replica.
func (c *Controller) use(k *keyring) error {
	own, err := k.current.controller(time.Now(), c.o.Lifetimes.Leaf)
	if err != nil {
		return err
	}
	c.set(k, own, roots(k.trusted()...))
	return nil
}

// watchSecret sends the Secret whenever it has changed. The caller calls the
// returned function at the end.
func (c *Controller) watchSecret(ctx context.Context) (<-chan *corev1.Secret, func(), error) {
	factory := informers.NewSharedInformerFactoryWithOptions(c.o.Client, 0,
		informers.WithNamespace(c.o.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", c.o.Secret).String()
		}))
	found := make(chan *corev1.Secret)
	deliver := func(object any) {
		if s, ok := object.(*corev1.Secret); ok && s.Name == c.o.Secret {
			select {
			case found <- s:
			case <-ctx.Done():
			}
		}
	}
	_, err := factory.Core().V1().Secrets().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    deliver,
		UpdateFunc: func(_, object any) { deliver(object) },
	})
	if err != nil {
		return nil, nil, fmt.Errorf("watch secret %s/%s: %w", c.o.Namespace, c.o.Secret, err)
	}
	factory.Start(ctx.Done())
	return found, factory.Shutdown, nil
}

// keepaliveTime is how long a connection may be silent before gRPC pings the node.
const keepaliveTime = 20 * time.Second

// DialOptions connect to the node with that full name and to no other, and name
// the node in every call.
func (c *Controller) DialOptions(node string) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(c.Credentials(node)),
		grpc.WithPerRPCCredentials(destination(node)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTime / 2}),
		// By default an idle connection keeps 64 KiB of buffers, and there are thousands.
		grpc.WithReadBufferSize(4 << 10),
	}
}

// Credentials verify that the server is the node with that full name. They show
// this controller's current certificate. Only new connections use a new
// certificate; existing connections continue.
func (c *Controller) Credentials(node string) credentials.TransportCredentials {
	return credentials.NewTLS(c.config(func(state tls.ConnectionState) error {
		c.mu.Lock()
		roots := c.roots
		c.mu.Unlock()
		return verify(state.PeerCertificates, roots, x509.ExtKeyUsageServerAuth, NodeIdentity(node))
	}))
}

// config returns a client's TLS configuration that verifies the server with
// verifyServer, because names are URIs here, and the roots change.
func (c *Controller) config(verifyServer func(tls.ConnectionState) error) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{"h2"},
		InsecureSkipVerify: true, // replaced by VerifyConnection
		VerifyConnection:   verifyServer,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.certificate == nil {
				return nil, fmt.Errorf("controller: %w", ErrNoCertificate)
			}
			return c.certificate, nil
		},
	}
}

// destination names the node in the metadata of each call.
type destination string

func (d destination) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{callmeta.NodeKey: string(d)}, nil
}

func (destination) RequireTransportSecurity() bool { return true }

// current returns the keyring. Errors: ErrNoCertificate until there is a keyring.
func (c *Controller) current() (*keyring, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keyring == nil {
		return nil, fmt.Errorf("controller: %w", ErrNoCertificate)
	}
	return c.keyring, nil
}
