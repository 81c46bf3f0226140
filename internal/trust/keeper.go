package trust

import (
	"bytes"
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
)

// keepInterval is the time between two looks at the CA when nothing changes.
const keepInterval = time.Minute

// Keep makes the CA if it is missing, publishes its certificate for the nodes, and
// replaces the CA before it expires, until ctx ends. Only the elected controller
// calls it. If two controllers believe that they are elected, the API server lets
// only one of them take each step.
func (c *Controller) Keep(ctx context.Context) {
	if c.o.CertDir != "" {
		return
	}
	for {
		wait := keepInterval
		step, err := c.keep(ctx, time.Now())
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			klog.FromContext(ctx).Error(err, "Could not look after the CA; retrying")
			wait = 5 * time.Second
		case step != "":
			klog.FromContext(ctx).Info("Certificate authority", "step", step)
			wait = 0 // another step may follow
		}
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-changed: // the Secret may have been edited
		case <-timer.C:
		}
		timer.Stop()
	}
}

// keep takes at most one step and returns its description; "" if there was none.
func (c *Controller) keep(ctx context.Context, now time.Time) (step string, err error) {
	secrets := c.o.Client.CoreV1().Secrets(c.o.Namespace)
	s, err := secrets.Get(ctx, c.o.Secret, metav1.GetOptions{})
	if errors.IsNotFound(err) {
		return c.create(ctx, now)
	}
	if err != nil {
		return "", fmt.Errorf("read the CA: %w", err)
	}
	k, err := decodeKeyring(s)
	if err != nil {
		return "", err
	}
	published, err := c.publish(ctx, k)
	if errors.IsAlreadyExists(err) || errors.IsConflict(err) {
		return "another controller published the CA", nil
	}
	if err != nil {
		return "", err
	}
	_, asked := s.Annotations[AnnotationRotate]
	switch {
	case k.next != nil && (published || k.published.IsZero()):
		k.published, step = now, "published the next CA"
	default:
		if step, err = k.advance(now, c.o.Lifetimes, asked); err != nil {
			return "", err
		}
	}
	if step == "" {
		return "", nil
	}
	s = s.DeepCopy()
	if err := k.encode(s); err != nil {
		return "", err
	}
	if k.next != nil {
		delete(s.Annotations, AnnotationRotate)
	}
	// The update has the version that was read. If another controller has taken a
	// step since, the update fails, and the next keep decides anew.
	_, err = secrets.Update(ctx, s, metav1.UpdateOptions{})
	switch {
	case errors.IsConflict(err):
		return "another controller changed the CA", nil
	case err != nil:
		return "", fmt.Errorf("change the CA: %w", err)
	}
	return step, nil
}

// create makes the CA, unless another controller makes it at the same time.
func (c *Controller) create(ctx context.Context, now time.Time) (step string, err error) {
	k, err := newKeyring(now, c.o.Lifetimes)
	if err != nil {
		return "", err
	}
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: c.o.Secret, Namespace: c.o.Namespace}, Type: corev1.SecretTypeOpaque}
	if err := k.encode(s); err != nil {
		return "", err
	}
	_, err = c.o.Client.CoreV1().Secrets(c.o.Namespace).Create(ctx, s, metav1.CreateOptions{})
	switch {
	case errors.IsAlreadyExists(err):
		return "another controller made the CA", nil
	case err != nil:
		return "", fmt.Errorf("store a new CA: %w", err)
	}
	return "made the CA", nil
}

// publish brings the ConfigMap in line with the keyring. changed reports whether
// that was necessary.
func (c *Controller) publish(ctx context.Context, k *keyring) (changed bool, err error) {
	want := encodeCertificates(k.trusted()...)
	maps := c.o.Client.CoreV1().ConfigMaps(c.o.Namespace)
	m, err := maps.Get(ctx, c.o.ConfigMap, metav1.GetOptions{})
	switch {
	case errors.IsNotFound(err):
		m = &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: c.o.ConfigMap, Namespace: c.o.Namespace},
			Data:       map[string]string{fileRoots: string(want)},
		}
		_, err = maps.Create(ctx, m, metav1.CreateOptions{})
	case err == nil && bytes.Equal([]byte(m.Data[fileRoots]), want):
		return false, nil
	case err == nil:
		m = m.DeepCopy()
		if m.Data == nil {
			m.Data = map[string]string{}
		}
		m.Data[fileRoots] = string(want)
		_, err = maps.Update(ctx, m, metav1.UpdateOptions{})
	}
	if err != nil {
		return false, fmt.Errorf("publish the CA's certificate: %w", err)
	}
	return true, nil
}
