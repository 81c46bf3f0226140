package trust

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// NodeOptions are a node's name, and the places of its files.
type NodeOptions struct {
	Name      string // the node's full name
	TrustDir  string // has ca.crt, the CA certificates; may appear later
	TokenFile string // the pod's service account token for the audience Domain
	CertDir   string // if not empty, has tls.crt, tls.key and ca.crt, and there is no enrolment
}

// Node is the node's side of the trust. It accepts only the controller, and gets
// its own certificate from it. It is safe for concurrent use.
type Node struct {
	roleapi.UnimplementedEnrolmentServer

	o     NodeOptions
	files *watched

	mu          sync.Mutex
	certificate *tls.Certificate
	enrolled    bool              // a CA has signed certificate
	roots       *x509.CertPool    // nil until the node knows a CA
	pending     *ecdsa.PrivateKey // the key of the last signing request
}

// NewNode reads the files that exist already. Run follows their changes.
func NewNode(ctx context.Context, o NodeOptions) (*Node, error) {
	n := &Node{o: o}
	if o.CertDir != "" {
		n.files = certDir(o.CertDir, NodeIdentity(o.Name), x509.ExtKeyUsageServerAuth, func(c *tls.Certificate, roots *x509.CertPool) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.certificate, n.roots, n.enrolled = c, roots, true
		})
	} else {
		n.files = &watched{dir: o.TrustDir, names: []string{fileRoots}, use: func(contents map[string][]byte) error {
			roots, err := decodeRoots(contents[fileRoots])
			if err != nil {
				return err
			}
			n.mu.Lock()
			defer n.mu.Unlock()
			n.roots = roots
			return nil
		}}
		key, err := newKey()
		if err != nil {
			return nil, err
		}
		if n.certificate, err = unsigned(key, time.Now()); err != nil {
			return nil, err
		}
	}
	n.files.look(ctx)
	return n, nil
}

// Run follows changes of the files until ctx ends.
func (n *Node) Run(ctx context.Context) { n.files.run(ctx) }

// Enrolled reports whether controllers can recognise this node now.
func (n *Node) Enrolled() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.enrolled && time.Now().Before(n.certificate.Leaf.NotAfter)
}

// config returns the TLS configuration for a connection that begins now.
func (n *Node) config(*tls.ClientHelloInfo) (*tls.Config, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.roots == nil || n.certificate == nil {
		return nil, fmt.Errorf("node %s does not know a CA yet; it waits for the files in %s", n.o.Name, n.files.dir)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"h2"},
		Certificates: []tls.Certificate{*n.certificate},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    n.roots,
		// A resumed session would still trust a CA that was dropped since.
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return checkIdentity(state.PeerCertificates[0], ControllerIdentity)
		},
	}, nil
}

// How long a connection lives. An existing connection does not notice that a
// certificate has expired or that a CA is no longer trusted. So each connection
// ends after a while: the server asks the client to open a new one, and running
// calls continue.
const (
	connectionAge   = time.Hour
	connectionGrace = 15 * time.Minute
)

// ServerOptions make a gRPC server accept only controllers. The server refuses
// calls that are meant for another node, and calls before the node is enrolled. It
// limits the resources of each peer.
func (n *Node) ServerOptions() []grpc.ServerOption {
	return append(limits(),
		grpc.Creds(newDoor(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: n.config}))),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, r any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if err := n.admit(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return handle(ctx, r)
		}),
		grpc.ChainStreamInterceptor(func(server any, s grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			if err := n.admit(s.Context(), info.FullMethod); err != nil {
				return err
			}
			return handle(server, s)
		}),
	)
}

// admit checks that a call is meant for this node. TLS has authenticated the caller.
// Errors: FAILED_PRECONDITION for another node's call, UNAVAILABLE before enrolment.
func (n *Node) admit(ctx context.Context, method string) error {
	names := metadata.ValueFromIncomingContext(ctx, callmeta.NodeKey)
	if len(names) == 0 {
		return status.Errorf(codes.FailedPrecondition, "this is node %s; the call names no node in its metadata %s", n.o.Name, callmeta.NodeKey)
	}
	for _, name := range names {
		if name != n.o.Name {
			return status.Errorf(codes.FailedPrecondition, "this is node %s; the call is for node %s", n.o.Name, name)
		}
	}
	if !strings.HasPrefix(method, "/"+roleapi.Enrolment_ServiceDesc.ServiceName+"/") && !n.Enrolled() {
		return status.Errorf(codes.Unavailable, "node %s has no certificate yet", n.o.Name)
	}
	return nil
}

// Register adds the Enrolment service, unless certificates come from files.
func (n *Node) Register(server grpc.ServiceRegistrar) {
	if n.o.CertDir == "" {
		roleapi.RegisterEnrolmentServer(server, n)
	}
}

var errNotRequested = errors.New("the certificate is not for a key of this process of the node, which may have restarted")

// install starts to use a certificate for the pending key, or for the key in use.
func (n *Node) install(ctx context.Context, text []byte) error {
	chain, err := decodeCertificates(text)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.roots == nil {
		return fmt.Errorf("no CA known yet; the node waits for the files in %s", n.files.dir)
	}
	if err := verify(chain, n.roots, x509.ExtKeyUsageServerAuth, NodeIdentity(n.o.Name)); err != nil {
		return err
	}
	public, ok := chain[0].PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return errNotRequested
	}
	key := n.pending
	if key == nil || !key.PublicKey.Equal(public) {
		// Two controllers may enrol a node at the same time.
		if key, ok = n.certificate.PrivateKey.(*ecdsa.PrivateKey); !ok || !key.PublicKey.Equal(public) {
			return errNotRequested
		}
	}
	pair := keyPair(chain[0], key)
	for _, c := range chain[1:] {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	n.certificate, n.enrolled = pair, true
	if key == n.pending {
		n.pending = nil
	}
	klog.FromContext(ctx).Info("Enrolled", "node", n.o.Name, "until", chain[0].NotAfter)
	return nil
}
