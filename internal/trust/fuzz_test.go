package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"slices"
	"testing"
	"time"
)

// FuzzDecodeRequest: a node that an attacker has taken over sends any signing request.
// The request is refused, or the certificate is for the node that it was asked of and
// for a P-256 key, whatever names, usages and extensions the request has.
func FuzzDecodeRequest(f *testing.F) {
	key, err := newKey()
	if err != nil {
		f.Fatal(err)
	}
	for _, r := range []x509.CertificateRequest{
		{}, {Subject: pkix.Name{CommonName: "system:masters"}, DNSNames: []string{"other"}, SignatureAlgorithm: x509.ECDSAWithSHA384},
	} {
		der, err := x509.CreateCertificateRequest(rand.Reader, &r, key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: der}), false)
		f.Add(der, true)
	}
	ca, err := newAuthority(time.Now(), time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte, der bool) {
		if der { // the fuzzer finds no way through the base64
			text = pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: text})
		}
		r, err := decodeRequest(text)
		if err != nil {
			return
		}
		c, err := ca.node(r, "worker-1", time.Now(), time.Minute)
		if err != nil {
			t.Fatalf("a request that was accepted cannot be signed: %v", err)
		}
		own, err := ca.sign(key.Public(), NodeIdentity("worker-1"), x509.ExtKeyUsageServerAuth, time.Now(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if k, is := c.PublicKey.(*ecdsa.PublicKey); !is || k.Curve != elliptic.P256() || c.IsCA || c.Subject.String() != own.Subject.String() ||
			!slices.Equal(c.DNSNames, own.DNSNames) || len(c.IPAddresses) != 0 || len(c.EmailAddresses) != 0 || !slices.Equal(c.ExtKeyUsage, own.ExtKeyUsage) || len(c.Extensions) != len(own.Extensions) {
			t.Errorf("signed %+v", c)
		}
	})
}
