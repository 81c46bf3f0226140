package trust

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"os"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// Request returns this node's signing request and service account token.
func (n *Node) Request(context.Context, *roleapi.RequestRequest) (*roleapi.RequestResponse, error) {
	token, err := os.ReadFile(n.o.TokenFile)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "node %s: read the service account token: %v", n.o.Name, err)
	}
	request, err := n.signingRequest()
	if err != nil {
		return nil, status.Errorf(codes.Internal, "node %s: make a certificate signing request: %v", n.o.Name, err)
	}
	return &roleapi.RequestResponse{SigningRequest: string(request), Token: strings.TrimSpace(string(token))}, nil
}

// Install starts to use the certificate that the controller has signed.
func (n *Node) Install(ctx context.Context, r *roleapi.InstallRequest) (*roleapi.InstallResponse, error) {
	if err := n.install(ctx, []byte(r.GetCertificate())); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "node %s refuses the certificate: %v", n.o.Name, err)
	}
	return &roleapi.InstallResponse{}, nil
}

// signingRequest returns a request for the pending key. The key stays the same until
// its certificate arrives, so that two controllers that ask at the same time can
// both continue.
func (n *Node) signingRequest() ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pending == nil {
		key, err := newKey()
		if err != nil {
			return nil, err
		}
		n.pending = key
	}
	uri, err := url.Parse(NodeIdentity(n.o.Name))
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, n.pending)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: der}), nil
}
