package trust

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// TestDecodeRequest_bounded: a signing request is refused before any expensive
// work if it is too large or for another kind of key.
func TestDecodeRequest_bounded(t *testing.T) {
	n := &Node{o: NodeOptions{Name: "n"}}
	good, err := n.signingRequest()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeRequest(good); err != nil {
		t.Error(err)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	for want, text := range map[string]string{
		"bytes": strings.Repeat("x", maxSigningRequest) + string(good),
		"P-256": string(pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: der})),
	} {
		if _, err := decodeRequest([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestReview_largeToken: a token that is too large does not reach the API
// server.
func TestReview_largeToken(t *testing.T) {
	client := fake.NewClientset()
	e := &enroller{c: &Controller{o: ControllerOptions{Client: client}}}
	if err := e.review(t.Context(), strings.Repeat("x", maxToken+1), &corev1.Pod{}); !errors.Is(err, errToken) || len(client.Actions()) != 0 {
		t.Errorf("%v, %v", err, client.Actions())
	}
}

// TestMayLook_limited: a node whose pod changes all the time is looked at only
// so often, and delays no other node.
func TestMayLook_limited(t *testing.T) {
	e := &enroller{}
	looks := 0
	for range 100 * enrolBurst {
		if e.mayLook("evil") {
			looks++
		}
	}
	if looks < enrolBurst || looks > enrolBurst+5 {
		t.Errorf("%d looks", looks)
	}
	if !e.mayLook("n") {
		t.Error("another node is not looked at")
	}
}
