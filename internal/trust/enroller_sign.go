package trust

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// Limits of what a node that wants a certificate may send, because anybody may
// answer at its address. An honest node's token has about 1.2 KiB, its request
// half a KiB.
const (
	maxToken          = 16 << 10 // bytes
	maxSigningRequest = 4 << 10
)

// enrol asks a node for its signing request, has Kubernetes confirm the node's
// identity, signs, and hands the certificate over. TLS does not verify the server
// here; the node's token does. An attacker in between cannot use this controller's
// certificate.
func (e *enroller) enrol(ctx context.Context, address string, pod *corev1.Pod, k *keyring) (*x509.Certificate, error) {
	node := pod.Spec.NodeName
	unverified := e.c.config(func(tls.ConnectionState) error { return nil })
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(unverified)), grpc.WithPerRPCCredentials(destination(node)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxToken+maxSigningRequest)), grpc.WithMaxHeaderListSize(maxHeaders))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	client := roleapi.NewEnrolmentClient(conn)
	wanted, err := client.Request(ctx, &roleapi.RequestRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask for its signing request: %w", err)
	}
	request, err := decodeRequest([]byte(wanted.GetSigningRequest()))
	if err != nil {
		return nil, fmt.Errorf("its certificate signing request: %w", err)
	}
	if err := e.review(ctx, wanted.GetToken(), pod); err != nil {
		return nil, err
	}
	leaf, err := k.current.node(request, node, time.Now(), e.c.o.Lifetimes.Leaf)
	if err != nil {
		return nil, err
	}
	if _, err := client.Install(ctx, &roleapi.InstallRequest{Certificate: string(encodeCertificates(leaf))}); err != nil {
		return nil, fmt.Errorf("hand over its certificate: %w", err)
	}
	return leaf, nil
}

// Keys of a reviewed token for the pod and the node to which the token is bound.
// Only Kubernetes 1.30 and newer tells the node.
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
)

// errToken: the token does not belong to the node's pod.
var errToken = errors.New("its service account token does not belong to the node's pod")

// review has the API server check that the token belongs to the pod and is for the
// driver's audience. Errors: errToken, or that of the review.
func (e *enroller) review(ctx context.Context, token string, pod *corev1.Pod) error {
	if len(token) > maxToken {
		return fmt.Errorf("%w: it has %d bytes", errToken, len(token))
	}
	r, err := e.c.o.Client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{Domain}},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("review its token: %w", err)
	}
	s := r.Status
	if !s.Authenticated {
		return fmt.Errorf("%w: %s", errToken, s.Error)
	}
	// An API server that does not know audiences would accept any token.
	if !slices.Contains(s.Audiences, Domain) {
		return fmt.Errorf("%w: it is for the audiences %v", errToken, s.Audiences)
	}
	account := "system:serviceaccount:" + pod.Namespace + ":" + e.nodes.ServiceAccount
	if s.User.Username != account {
		return fmt.Errorf("%w: it belongs to %s, not to %s", errToken, s.User.Username, account)
	}
	for key, want := range map[string]string{extraPodName: pod.Name, extraPodUID: string(pod.UID), extraNodeName: pod.Spec.NodeName} {
		got := s.User.Extra[key]
		if key == extraNodeName && len(got) == 0 {
			continue // the token is bound to the pod, which is on this node
		}
		if len(got) != 1 || got[0] != want {
			return fmt.Errorf("%w: %s is %v, not %s", errToken, key, got, want)
		}
	}
	return nil
}
