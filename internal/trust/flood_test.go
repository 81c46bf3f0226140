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

// A signing request is small and for the kind of key that we sign, before
// anything is computed with it or asked of Kubernetes.
func TestSigningRequestsAreBounded(t *testing.T) {
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

// A token of any size is not handed to the API server.
func TestLargeToken(t *testing.T) {
	client := fake.NewClientset()
	e := &enroller{c: &Controller{o: ControllerOptions{Client: client}}}
	if err := e.review(t.Context(), strings.Repeat("x", maxToken+1), &corev1.Pod{}); !errors.Is(err, errToken) || len(client.Actions()) != 0 {
		t.Errorf("%v, %v", err, client.Actions())
	}
}

// A node whose pod changes all the time is not looked at all the time, and
// keeps no other from being looked at.
func TestLooksAreLimited(t *testing.T) {
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
