package trust

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/kubernetes/fake"
)

// refused checks that a call failed with that code and reason.
func refused(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(err.Error(), reason) {
		t.Errorf("got %v, want %s with %q", err, code, reason)
	}
}

// TestConnection_serverIdentity: a controller talks only to the node that it
// means, and only once the node is enrolled.
func TestConnection_serverIdentity(t *testing.T) {
	c := controller(t, fake.NewClientset(), true)
	n := serveNode(t, NodeOptions{Name: "node-a"}, plugin{})

	refused(t, probe(t, dial(t, n.address, c.DialOptions("node-a")...)), codes.Unavailable, "remote error")
	n.trust(t, c)
	refused(t, probe(t, dial(t, n.address, c.DialOptions("node-a")...)), codes.Unavailable, ErrNotEnrolled.Error())
	if err := n.enrol(t, c, "node-b", 0); err == nil || n.Enrolled() {
		t.Errorf("the node took another node's certificate: %v", err)
	}
	if err := n.enrol(t, c, "node-a", -48*time.Hour); err == nil || n.Enrolled() {
		t.Errorf("the node took an expired certificate: %v", err)
	}
	if err := n.enrol(t, c, "node-a", 0); err != nil || !n.Enrolled() {
		t.Fatalf("enrolment: %v", err)
	}
	client := dial(t, n.address, c.DialOptions("node-a")...)
	if err := probe(t, client); err != nil {
		t.Errorf("an enrolled node, its controller: %v", err)
	}
	// Another node's certificate: the pod at this address is not node-b's.
	refused(t, probe(t, dial(t, n.address, c.DialOptions("node-b")...)), codes.Unavailable, ErrIdentity.Error())
	// A call names another node, on a connection to the right node.
	for _, name := range []string{"node-b", "node", ""} {
		refused(t, probe(t, dial(t, n.address, grpc.WithTransportCredentials(c.Credentials("node-a")), grpc.WithPerRPCCredentials(destination(name)))),
			codes.FailedPrecondition, "this is node node-a")
	}
	refused(t, probe(t, dial(t, n.address, grpc.WithTransportCredentials(c.Credentials("node-a")))), codes.FailedPrecondition, "names no node")
	if err := probe(t, client); err != nil {
		t.Errorf("the good connection: %v", err)
	}
}

// TestConnection_refusesClients: a node accepts no client without a
// controller's certificate of its CA.
func TestConnection_refusesClients(t *testing.T) {
	c := controller(t, fake.NewClientset(), true)
	other := controller(t, fake.NewClientset(), true) // another cluster's
	n := serveNode(t, NodeOptions{Name: "node-a"}, plugin{})
	n.trust(t, c)
	if err := n.enrol(t, c, "node-a", 0); err != nil {
		t.Fatal(err)
	}
	ours, _ := c.current()
	issue := func(identity string, usage x509.ExtKeyUsage, shift time.Duration) *tls.Certificate {
		t.Helper()
		key, err := newKey()
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := ours.current.sign(key.Public(), identity, usage, time.Now().Add(shift), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return keyPair(leaf, key)
	}
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	selfSigned, err := unsigned(key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, certificate := range map[string]*tls.Certificate{
		"none":                        nil,
		"self-signed":                 selfSigned,
		"another CA's controller":     other.certificate,
		"a node":                      issue(NodeIdentity("node-a"), x509.ExtKeyUsageServerAuth, 0),
		"a node's, for clients":       issue(NodeIdentity("node-b"), x509.ExtKeyUsageClientAuth, 0),
		"a controller's, for servers": issue(ControllerIdentity, x509.ExtKeyUsageServerAuth, 0),
		"expired":                     issue(ControllerIdentity, x509.ExtKeyUsageClientAuth, -2*time.Hour),
		"not valid yet":               issue(ControllerIdentity, x509.ExtKeyUsageClientAuth, 2*time.Hour),
	} {
		config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
		if certificate != nil {
			config.Certificates = []tls.Certificate{*certificate}
		}
		// In TLS 1.3 the client learns only at its first read that the server refuses it.
		config.NextProtos = []string{"h2"}
		conn, err := tls.Dial("tcp", n.address, config)
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "remote error: tls") {
			t.Errorf("%s: %v", name, err)
		}
		refused(t, probe(t, dial(t, n.address, grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithPerRPCCredentials(destination("node-a")))),
			codes.Unavailable, "")
	}
	refused(t, probe(t, dial(t, n.address, grpc.WithTransportCredentials(insecure.NewCredentials()))), codes.Unavailable, "")
	refused(t, probe(t, dial(t, n.address, other.DialOptions("node-a")...)), codes.Unavailable, "unknown authority")
	if err := probe(t, dial(t, n.address, c.DialOptions("node-a")...)); err != nil {
		t.Errorf("our controller: %v", err)
	}
}

// TestConnection_expiredNode: a controller does not accept a node's expired
// certificate.
func TestConnection_expiredNode(t *testing.T) {
	c := controller(t, fake.NewClientset(), true)
	n := serveNode(t, NodeOptions{Name: "node-a"}, plugin{})
	n.trust(t, c)
	k, _ := c.current()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := k.current.sign(key.Public(), NodeIdentity("node-a"), x509.ExtKeyUsageServerAuth, time.Now().Add(-2*time.Hour), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.certificate, n.enrolled = keyPair(leaf, key), true
	n.mu.Unlock()
	if n.Enrolled() {
		t.Error("an expired certificate counts")
	}
	refused(t, probe(t, dial(t, n.address, c.DialOptions("node-a")...)), codes.Unavailable, "expired")
}

// TestConnection_newCertificates: open connections and running calls continue
// while both sides change their certificates.
func TestConnection_newCertificates(t *testing.T) {
	c := controller(t, fake.NewClientset(), true)
	hold := make(chan struct{})
	n := serveNode(t, NodeOptions{Name: "node-a"}, plugin{hold: hold})
	n.trust(t, c)
	if err := n.enrol(t, c, "node-a", 0); err != nil {
		t.Fatal(err)
	}
	client := dial(t, n.address, c.DialOptions("node-a")...)
	result := make(chan error, 1)
	go func() { result <- probe(t, client) }()
	former := n.certificate
	if err := n.enrol(t, c, "node-a", 0); err != nil {
		t.Fatal(err)
	}
	k, _ := c.current()
	if err := c.use(k); err != nil {
		t.Fatal(err)
	}
	if n.certificate.Leaf.Equal(former.Leaf) || n.certificate.PrivateKey == former.PrivateKey {
		t.Error("the node's key and certificate are the former ones")
	}
	close(hold)
	if err := <-result; err != nil {
		t.Errorf("the running call: %v", err)
	}
	for name, client := range map[string]csi.IdentityClient{
		"the open connection": client, "a new one": dial(t, n.address, c.DialOptions("node-a")...),
	} {
		if err := probe(t, client); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCertDir_replacesSecret: certificates from files work without Secret,
// ConfigMap and enrolment, and new files are used.
func TestCertDir_replacesSecret(t *testing.T) {
	k, err := newKeyring(time.Now(), DefaultLifetimes)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	place := func(sub, identity string, usage x509.ExtKeyUsage) string {
		t.Helper()
		key, err := newKey()
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := k.current.sign(key.Public(), identity, usage, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		certificate, pem, err := (&authority{certificate: leaf, key: key}).encode()
		if err != nil {
			t.Fatal(err)
		}
		var n testNode
		for name, text := range map[string][]byte{fileCertificate: certificate, fileKey: pem, fileRoots: encodeCertificates(k.current.certificate)} {
			n.write(t, filepath.Join(dir, sub, name), string(text))
		}
		return filepath.Join(dir, sub)
	}
	c := NewController(t.Context(), ControllerOptions{CertDir: filepath.Join(dir, "controller")})
	background(t, func(ctx context.Context) { _ = c.Run(ctx) })
	n := serveNode(t, NodeOptions{Name: "node-a", CertDir: filepath.Join(dir, "node")}, plugin{})
	if c.Ready() || n.Enrolled() {
		t.Fatal("ready without files")
	}
	refused(t, probe(t, dial(t, n.address, c.DialOptions("node-a")...)), codes.Unavailable, "")
	place("controller", ControllerIdentity, x509.ExtKeyUsageClientAuth)
	place("node", NodeIdentity("node-b"), x509.ExtKeyUsageServerAuth) // somebody else's
	eventually(t, "the controller has read its files", c.Ready)
	time.Sleep(10 * interval)
	if n.Enrolled() {
		t.Fatal("the node took another node's certificate")
	}
	place("node", NodeIdentity("node-a"), x509.ExtKeyUsageServerAuth)
	eventually(t, "the node has read its files", n.Enrolled)
	if err := probe(t, dial(t, n.address, c.DialOptions("node-a")...)); err != nil {
		t.Error(err)
	}
	former := n.certificate.Leaf
	place("node", NodeIdentity("node-a"), x509.ExtKeyUsageServerAuth)
	eventually(t, "the node uses its new files", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return !n.certificate.Leaf.Equal(former)
	})
	if err := probe(t, dial(t, n.address, c.DialOptions("node-a")...)); err != nil {
		t.Error(err)
	}
}
