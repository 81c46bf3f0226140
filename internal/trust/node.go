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

// NodeOptions say who a node is and where it finds what it needs.
type NodeOptions struct {
	Name      string // the node's full name
	TrustDir  string // has ca.crt, the CA certificates; may appear later
	TokenFile string // the pod's service account token for the audience Domain
	CertDir   string // if not empty: tls.crt, tls.key and ca.crt are there, and there is no enrolment
}

// Node is the node's side of the trust: it accepts the controller only, and
// has its own certificate from it.
type Node struct {
	roleapi.UnimplementedEnrolmentServer

	o     NodeOptions
	files *watched

	mu          sync.Mutex
	certificate *tls.Certificate
	enrolled    bool              // certificate says who we are
	roots       *x509.CertPool    // nil until we know a CA
	pending     *ecdsa.PrivateKey // for which we asked for a certificate
}

// NewNode reads what is there already; Run keeps it up to date.
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

// Enrolled tells whether controllers can recognise this node now.
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
		return nil, fmt.Errorf("node %s does not know a CA: waiting for the files in %s", n.o.Name, n.files.dir)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"h2"},
		Certificates: []tls.Certificate{*n.certificate},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    n.roots,
		// A resumed session would still trust what was dropped since.
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return checkIdentity(state.PeerCertificates[0], ControllerIdentity)
		},
	}, nil
}

// How long a connection lives. An existing one does not notice that a
// certificate expired or a CA is trusted no more, so each ends some time, by
// asking the client to open another one: calls go on.
const (
	connectionAge   = time.Hour
	connectionGrace = 15 * time.Minute
)

// ServerOptions make a gRPC server speak to controllers only, and refuse calls
// that are meant for another node or come before the node is enrolled. Nobody
// can take up more of the server than its limits.
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

// admit checks that a call is meant for this node. TLS has told who is calling.
func (n *Node) admit(ctx context.Context, method string) error {
	names := metadata.ValueFromIncomingContext(ctx, callmeta.NodeKey)
	if len(names) == 0 {
		return status.Errorf(codes.FailedPrecondition, "this is node %s: the call does not say which it is for (metadata %s)", n.o.Name, callmeta.NodeKey)
	}
	for _, name := range names {
		if name != n.o.Name {
			return status.Errorf(codes.FailedPrecondition, "this is node %s, the call is for node %s", n.o.Name, name)
		}
	}
	if !strings.HasPrefix(method, "/"+roleapi.Enrolment_ServiceDesc.ServiceName+"/") && !n.Enrolled() {
		return status.Errorf(codes.Unavailable, "node %s has no certificate yet", n.o.Name)
	}
	return nil
}

// Register adds the Enrolment service, if certificates come that way.
func (n *Node) Register(server grpc.ServiceRegistrar) {
	if n.o.CertDir == "" {
		roleapi.RegisterEnrolmentServer(server, n)
	}
}

var errNotRequested = errors.New("the certificate is not for a key of this node's process, which may have started anew")

// install takes a certificate for the key that was asked for, or for the one
// in use.
func (n *Node) install(ctx context.Context, text []byte) error {
	chain, err := decodeCertificates(text)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.roots == nil {
		return fmt.Errorf("waiting for the files in %s", n.files.dir)
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
