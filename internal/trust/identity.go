package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// Domain is the audience of the tokens by which nodes prove their identity, and the
// prefix of this driver's annotations.
const Domain = handle.Driver

// ControllerIdentity is the URI in the certificate of a controller.
const ControllerIdentity = "dmsnap://controller"

// NodeIdentity returns the URI in the certificate of the node with that full
// name.
func NodeIdentity(node string) string { return "dmsnap://node/" + node }

// Errors of a handshake. gRPC wraps them in the UNAVAILABLE status of a call
// as text only.
var (
	// ErrIdentity: the peer's certificate is valid, but belongs to another identity.
	ErrIdentity = errors.New("the certificate belongs to another identity")
	// ErrNotEnrolled: the peer is a node that has no certificate yet.
	ErrNotEnrolled = errors.New("the node has no certificate yet")
	// ErrNoCertificate: this side has no certificate yet.
	ErrNoCertificate = errors.New("no certificate yet")
)

// verify checks a peer's certificate chain, leaf first, as TLS received it. One of
// the roots must have signed it, and the leaf must be valid now, for that usage and
// that identity. Errors: ErrNotEnrolled, ErrIdentity, or why the chain is not valid.
func verify(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, identity string) error {
	if len(chain) == 0 {
		return fmt.Errorf("expected %s: the peer shows no certificate", identity)
	}
	if roots == nil { // x509 would trust the roots of the system
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

// checkIdentity checks that a certificate has exactly one URI, the identity, so that
// no certificate stands for two identities. Errors: ErrIdentity.
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
