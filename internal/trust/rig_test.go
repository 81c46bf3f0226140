package trust

import (
	"context"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

func TestMain(m *testing.M) {
	interval = 10 * time.Millisecond
	goleak.VerifyTestMain(m)
}

const (
	namespace = "csi-dmsnap"
	secret    = "csi-dmsnap-ca"
	configMap = "csi-dmsnap-trust"
)

// background runs f until the test ends, and waits for it.
func background(t *testing.T, f func(ctx context.Context)) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { f(ctx) })
	stop = func() { cancel(); done.Wait() }
	t.Cleanup(stop)
	return stop
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// controller starts a replica on that API server. An elected replica keeps the CA.
func controller(t *testing.T, client *fake.Clientset, elected bool) *Controller {
	t.Helper()
	c := NewController(t.Context(), ControllerOptions{Client: client, Namespace: namespace, Secret: secret, ConfigMap: configMap})
	background(t, func(ctx context.Context) {
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	if elected {
		background(t, c.Keep)
		eventually(t, "the controller has a certificate", c.Ready)
	}
	return c
}

// testNode is a node that serves CSI's Identity service.
type testNode struct {
	*Node
	address  string
	trustDir string
	token    string // file
}

// plugin answers Probe.
type plugin struct {
	csi.UnimplementedIdentityServer
	hold <-chan struct{} // if not nil: Probe waits for it
}

func (p plugin) Probe(ctx context.Context, _ *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	if p.hold != nil {
		select {
		case <-p.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

func serveNode(t *testing.T, o NodeOptions, p plugin) *testNode {
	t.Helper()
	n := &testNode{}
	if o.CertDir == "" {
		dir := t.TempDir()
		n.trustDir, n.token = filepath.Join(dir, "trust"), filepath.Join(dir, "token")
		o.TrustDir, o.TokenFile = n.trustDir, n.token
		n.write(t, n.token, "token of "+o.Name+"\n")
	}
	var err error
	if n.Node, err = NewNode(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	background(t, n.Run)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.address = listener.Addr().String()
	server := grpc.NewServer(n.ServerOptions()...)
	csi.RegisterIdentityServer(server, p)
	n.Register(server)
	var done sync.WaitGroup
	done.Go(func() {
		if err := server.Serve(listener); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { server.Stop(); done.Wait() })
	return n
}

func (n *testNode) write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func (n *testNode) leaf() *x509.Certificate {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.certificate.Leaf
}

// trust mounts the controller's CA certificates into the node's pod.
func (n *testNode) trust(t *testing.T, c *Controller) {
	t.Helper()
	k, err := c.current()
	if err != nil {
		t.Fatal(err)
	}
	n.write(t, filepath.Join(n.trustDir, fileRoots), string(encodeCertificates(k.trusted()...)))
	eventually(t, "the node has read its trust directory", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.roots != nil && n.roots.Equal(roots(k.trusted()...))
	})
}

// enrol gives the node a certificate for that name, shifted in time, without a look
// at the node's token.
func (n *testNode) enrol(t *testing.T, c *Controller, name string, shift time.Duration) error {
	t.Helper()
	k, err := c.current()
	if err != nil {
		t.Fatal(err)
	}
	r, err := n.Request(t.Context(), &roleapi.RequestRequest{})
	if err != nil {
		t.Fatal(err)
	}
	request, err := decodeRequest([]byte(r.GetSigningRequest()))
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := k.current.node(request, name, time.Now().Add(shift), c.o.Lifetimes.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	_, err = n.Install(t.Context(), &roleapi.InstallRequest{Certificate: string(encodeCertificates(certificate))})
	return err
}

// dial connects with options. The connection is closed at the end of the test.
func dial(t *testing.T, address string, options ...grpc.DialOption) csi.IdentityClient {
	t.Helper()
	conn, err := grpc.NewClient(address, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return csi.NewIdentityClient(conn)
}

func probe(t *testing.T, client csi.IdentityClient) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := client.Probe(ctx, &csi.ProbeRequest{})
	return err
}
