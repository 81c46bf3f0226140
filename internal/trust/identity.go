package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// Domain is the audience of the tokens by which nodes show who they are, and
// the prefix of the annotations that are ours.
const Domain = handle.Driver

// ControllerIdentity is the URI in the certificate of a controller.
const ControllerIdentity = "dmsnap://controller"

// NodeIdentity returns the URI in the certificate of the node with that full
// name.
func NodeIdentity(node string) string { return "dmsnap://node/" + node }

// Errors of a handshake. gRPC wraps them in the UNAVAILABLE status of a call
// as text only.
var (
	// ErrIdentity: the peer's certificate is good, but of somebody else.
	ErrIdentity = errors.New("the certificate is of another identity")
	// ErrNotEnrolled: the peer is a node that has no certificate yet.
	ErrNotEnrolled = errors.New("the node has no certificate yet")
	// ErrNoCertificate: this side has none yet.
	ErrNoCertificate = errors.New("no certificate yet")
)

// verify checks a peer's certificate chain, leaf first, as TLS received it:
// signed by one of the roots, valid now, for that usage, of that identity.
func verify(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, identity string) error {
	if len(chain) == 0 {
		return fmt.Errorf("expected %s: the peer shows no certificate", identity)
	}
	if roots == nil { // x509 would take the system's
		return fmt.Errorf("expected %s: no CA known yet", identity)
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	leaf := chain[0]
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		if usage == x509.ExtKeyUsageServerAuth && leaf.Issuer.CommonName == unsignedName {
			err = ErrNotEnrolled
		}
		return fmt.Errorf("expected %s: %w", identity, err)
	}
	return checkIdentity(leaf, identity)
}

// checkIdentity: exactly one URI, so that no certificate speaks for two.
func checkIdentity(leaf *x509.Certificate, identity string) error {
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != identity {
		return fmt.Errorf("expected %s, the certificate says %v: %w", identity, leaf.URIs, ErrIdentity)
	}
	return nil
}

// renewal returns when a certificate should be replaced: after two thirds of
// its life.
func renewal(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3 * 2)
}
