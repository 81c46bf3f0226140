package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"
)

// Lifetimes are how long certificates are valid, and how slowly the CA changes.
type Lifetimes struct {
	CA      time.Duration // replaced after two thirds
	Leaf    time.Duration // of nodes and controllers; replaced after two thirds
	Overlap time.Duration // how long all peers know a new CA before it signs
}

// DefaultLifetimes are short for nodes and controllers, because they get new
// certificates automatically. A ConfigMap reaches the nodes' files within two
// minutes, so an hour of overlap is ample.
var DefaultLifetimes = Lifetimes{CA: 365 * 24 * time.Hour, Leaf: 24 * time.Hour, Overlap: time.Hour}

// skew is how far the clocks of other machines may be behind. A machine refuses a
// certificate that is not valid yet by its own clock.
const skew = 10 * time.Minute

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func newAuthority(now time.Time, life time.Duration) (*authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		// The time in the name lets people tell two CAs apart.
		Subject:               pkix.Name{CommonName: "csi-dmsnap CA " + now.UTC().Format(time.RFC3339)},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(life),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true, // signs leaves only
		KeyUsage:              x509.KeyUsageCertSign,
	}
	c, err := makeCertificate(template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate authority: %w", err)
	}
	return &authority{certificate: c, key: key}, nil
}

// sign makes a certificate for a key. The certificate never outlives the CA.
func (a *authority) sign(public crypto.PublicKey, identity string, usage x509.ExtKeyUsage, now time.Time, life time.Duration) (*x509.Certificate, error) {
	uri, err := url.Parse(identity)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	end := now.Add(life)
	if end.After(a.certificate.NotAfter) {
		end = a.certificate.NotAfter
	}
	c, err := makeCertificate(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "csi-dmsnap"},
		URIs:        []*url.URL{uri},
		NotBefore:   now.Add(-skew),
		NotAfter:    end,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}, a.certificate, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for %s: %w", identity, err)
	}
	return c, nil
}

// controller makes a controller's key and client certificate.
func (a *authority) controller(now time.Time, life time.Duration) (*tls.Certificate, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	c, err := a.sign(key.Public(), ControllerIdentity, x509.ExtKeyUsageClientAuth, now, life)
	if err != nil {
		return nil, err
	}
	return keyPair(c, key), nil
}

// node signs a node's request. It takes only the key from the request; the
// controller has found out the node's name itself.
func (a *authority) node(request *x509.CertificateRequest, node string, now time.Time, life time.Duration) (*x509.Certificate, error) {
	return a.sign(request.PublicKey, NodeIdentity(node), x509.ExtKeyUsageServerAuth, now, life)
}

// decodeRequest reads a signing request and checks that its maker has the key. It
// accepts only ECDSA P-256 keys, because signatures of other kinds may be expensive
// to check.
func decodeRequest(text []byte) (*x509.CertificateRequest, error) {
	if len(text) > maxSigningRequest {
		return nil, fmt.Errorf("it has %d bytes, the limit is %d", len(text), maxSigningRequest)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != pemRequest {
		return nil, errors.New("it is not a certificate signing request in PEM form")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if key, ok := request.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("its key is not an ECDSA P-256 key")
	}
	return request, request.CheckSignature()
}

// unsignedName is the issuer of the certificate that a node shows until a
// controller has signed one, because TLS needs a certificate.
const unsignedName = "csi-dmsnap node without a certificate"

// unsigned makes the certificate that a node shows until a controller has signed one.
func unsigned(key *ecdsa.PrivateKey, now time.Time) (*tls.Certificate, error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: unsignedName}, NotBefore: now.Add(-skew), NotAfter: now.AddDate(10, 0, 0),
	}
	c, err := makeCertificate(template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return keyPair(c, key), nil
}

func makeCertificate(template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func keyPair(c *x509.Certificate, key crypto.Signer) *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key, Leaf: c}
}

const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
	pemRequest     = "CERTIFICATE REQUEST"
)

func encodeCertificates(certificates ...*x509.Certificate) []byte {
	var text []byte
	for _, c := range certificates {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: c.Raw})...)
	}
	return text
}

// decodeCertificates reads one or several certificates in PEM form.
func decodeCertificates(text []byte) ([]*x509.Certificate, error) {
	var certificates []*x509.Certificate
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != pemCertificate {
			return nil, fmt.Errorf("there is a %s where only certificates may be", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certificates = append(certificates, c)
	}
	if len(certificates) == 0 {
		return nil, errors.New("no certificate in PEM form")
	}
	return certificates, nil
}

func decodeRoots(text []byte) (*x509.CertPool, error) {
	certificates, err := decodeCertificates(text)
	if err != nil {
		return nil, err
	}
	return roots(certificates...), nil
}

func roots(certificates ...*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certificates {
		pool.AddCert(c)
	}
	return pool
}

func (a *authority) encode() (certificate, key []byte, err error) {
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return nil, nil, err
	}
	return encodeCertificates(a.certificate), pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

func decodeAuthority(certificate, key []byte) (*authority, error) {
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, err
	}
	ec, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, errors.New("not a CA certificate with an ECDSA key")
	}
	return &authority{certificate: pair.Leaf, key: ec}, nil
}
