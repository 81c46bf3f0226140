package trust

import (
	"context"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// stored returns the keyring and the published certificates.
func stored(t *testing.T, client *fake.Clientset) (k *keyring, published string) {
	t.Helper()
	s, err := client.CoreV1().Secrets(namespace).Get(t.Context(), secret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if k, err = decodeKeyring(s); err != nil {
		t.Fatal(err)
	}
	if m, err := client.CoreV1().ConfigMaps(namespace).Get(t.Context(), configMap, metav1.GetOptions{}); err == nil {
		published = m.Data[fileRoots]
	}
	return k, published
}

// TestKeep_twoReplicas: replicas that start at the same time end with one CA,
// which all of them use.
func TestKeep_twoReplicas(t *testing.T) {
	client := fake.NewClientset()
	var all []*Controller
	for range 8 {
		all = append(all, NewController(t.Context(), ControllerOptions{Client: client, Namespace: namespace, Secret: secret, ConfigMap: configMap}))
	}
	var racing sync.WaitGroup
	for _, c := range all {
		racing.Go(func() {
			if _, err := c.keep(t.Context(), time.Now()); err != nil {
				t.Error(err)
			}
		})
	}
	racing.Wait()
	k, _ := stored(t, client)
	for _, c := range all {
		background(t, func(ctx context.Context) { _ = c.Run(ctx) })
		eventually(t, "the replica has a certificate", c.Ready)
		own, err := c.current()
		if err != nil || !own.current.certificate.Equal(k.current.certificate) {
			t.Errorf("a replica has another CA, %v", err)
		}
		if c.certificate.Leaf.CheckSignatureFrom(k.current.certificate) != nil {
			t.Error("a replica's certificate is of another CA")
		}
	}
}

// TestKeep_rotates: each step of a rotation of the CA happens when it is due.
func TestKeep_rotates(t *testing.T) {
	client := fake.NewClientset()
	c := NewController(t.Context(), ControllerOptions{Client: client, Namespace: namespace, Secret: secret, ConfigMap: configMap})
	life := DefaultLifetimes
	start := time.Now()
	settle := func(at time.Time) (k *keyring, steps []string) {
		t.Helper()
		for {
			step, err := c.keep(t.Context(), at)
			if err != nil {
				t.Fatal(err)
			}
			if step == "" {
				break
			}
			if steps = append(steps, step); len(steps) > 5 {
				t.Fatalf("no end of steps: %v", steps)
			}
		}
		k, published := stored(t, client)
		if published != string(encodeCertificates(k.trusted()...)) {
			t.Errorf("published is not what is trusted, after %v", steps)
		}
		return k, steps
	}
	first, steps := settle(start)
	if len(steps) != 1 || first.next != nil || first.previous != nil {
		t.Fatalf("at first: %v", steps)
	}
	if _, steps := settle(start.Add(life.CA / 2)); len(steps) != 0 {
		t.Errorf("half way: %v", steps)
	}
	due := start.Add(life.CA * 2 / 3).Add(time.Minute)
	k, steps := settle(due)
	if len(steps) != 2 || k.next == nil || !k.current.certificate.Equal(first.current.certificate) {
		t.Fatalf("when it is due: %v", steps)
	}
	next := k.next.certificate
	// Somebody deletes the published certificates: the overlap begins again.
	if err := client.CoreV1().ConfigMaps(namespace).Delete(t.Context(), configMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	again := due.Add(life.Overlap / 2)
	if k, steps = settle(again); len(steps) != 1 || k.next == nil {
		t.Fatalf("after the publication was lost: %v", steps)
	}
	if _, steps = settle(again.Add(life.Overlap - time.Second*2)); len(steps) != 0 {
		t.Fatalf("too early: %v", steps)
	}
	promoted := again.Add(life.Overlap)
	if k, steps = settle(promoted); len(steps) != 1 || !k.current.certificate.Equal(next) || !k.previous.Equal(first.current.certificate) || k.next != nil {
		t.Fatalf("when all know the next: %v", steps)
	}
	if k, steps = settle(promoted.Add(life.Leaf)); len(steps) != 0 || k.previous == nil {
		t.Fatalf("while certificates of the previous may be in use: %v", steps)
	}
	if k, steps = settle(promoted.Add(life.Leaf + life.Overlap)); len(steps) != 1 || k.previous != nil || !k.current.certificate.Equal(next) {
		t.Fatalf("at the end: %v", steps)
	}
	// No controller ran until the CA had expired.
	if k, steps = settle(k.current.certificate.NotAfter.Add(time.Hour)); len(steps) != 1 || k.current.certificate.Equal(next) || k.previous != nil || k.next != nil {
		t.Fatalf("after it expired: %v", steps)
	}
}

// TestKeep_askedToRotate: the annotation begins a rotation, and a Secret that
// cannot be read is left alone.
func TestKeep_askedToRotate(t *testing.T) {
	client := fake.NewClientset()
	c := NewController(t.Context(), ControllerOptions{Client: client, Namespace: namespace, Secret: secret, ConfigMap: configMap})
	now := time.Now()
	if _, err := c.keep(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	secrets := client.CoreV1().Secrets(namespace)
	s, err := secrets.Get(t.Context(), secret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.Annotations[AnnotationRotate] = "please"
	if _, err = secrets.Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if step, err := c.keep(t.Context(), now); step != "made the next CA" {
		t.Errorf("asked to: %q, %v", step, err)
	}
	if s, err = secrets.Get(t.Context(), secret, metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, asked := s.Annotations[AnnotationRotate]; asked {
		t.Error("the request is still there")
	}
	s.Data[secretCurrentKey] = s.Data[secretNextKey]
	if _, err := secrets.Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if step, err := c.keep(t.Context(), now); err == nil {
		t.Errorf("a key that does not belong to the certificate: %q", step)
	}
	after, err := secrets.Get(t.Context(), secret, metav1.GetOptions{})
	if err != nil || string(after.Data[secretCurrentKey]) != string(s.Data[secretCurrentKey]) {
		t.Errorf("the Secret was changed, %v", err)
	}
}

// TestKeep_secretDeleted: deleting the Secret ends all trust in the former CA.
func TestKeep_secretDeleted(t *testing.T) {
	client := fake.NewClientset()
	c := NewController(t.Context(), ControllerOptions{Client: client, Namespace: namespace, Secret: secret, ConfigMap: configMap})
	now := time.Now()
	for range 2 { // made, published
		if _, err := c.keep(t.Context(), now); err != nil {
			t.Fatal(err)
		}
	}
	first, published := stored(t, client)
	if published != string(encodeCertificates(first.current.certificate)) {
		t.Fatal("not published")
	}
	if err := client.CoreV1().Secrets(namespace).Delete(t.Context(), secret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := c.keep(t.Context(), now); err != nil {
			t.Fatal(err)
		}
	}
	second, published := stored(t, client)
	if second.current.certificate.Equal(first.current.certificate) || second.previous != nil || published != string(encodeCertificates(second.current.certificate)) {
		t.Errorf("the deleted CA is still trusted: %s", published)
	}
}
