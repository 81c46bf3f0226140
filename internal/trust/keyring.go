package trust

import (
	"crypto/x509"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Keys of the Secret.
const (
	secretCurrent     = "ca.crt"
	secretCurrentKey  = "ca.key"
	secretNext        = "next.crt"
	secretNextKey     = "next.key"
	secretPrevious    = "previous.crt"
	annotationPublish = Domain + "/next-published-at"
	annotationPromote = Domain + "/current-since"
)

// AnnotationRotate on the Secret asks for a new CA. The controller removes the
// annotation when the rotation has begun.
const AnnotationRotate = Domain + "/rotate"

// keyring is the content of the Secret: the current CA, and during a rotation also
// the next or the previous CA.
type keyring struct {
	current  *authority
	next     *authority        // published, but does not sign yet; nil outside of a rotation
	previous *x509.Certificate // no longer signs, but its certificates are in use; nil outside of a rotation

	published time.Time // when next was last published; zero if it was not
	promoted  time.Time // when current began to sign
}

func newKeyring(now time.Time, life Lifetimes) (*keyring, error) {
	a, err := newAuthority(now, life.CA)
	return &keyring{current: a, promoted: now}, err
}

// trusted returns the CA certificates that nodes and controllers accept.
func (k *keyring) trusted() []*x509.Certificate {
	all := []*x509.Certificate{k.current.certificate}
	if k.next != nil {
		all = append(all, k.next.certificate)
	}
	if k.previous != nil {
		all = append(all, k.previous)
	}
	return all
}

// advance takes the next step of a rotation of the CA if the step is due, and
// returns its description. At each step all peers still trust each other: first
// all peers learn the next CA, then it signs, and once all certificates of the
// previous CA have expired, the keyring forgets it. asked begins a rotation before
// the CA's age does.
func (k *keyring) advance(now time.Time, life Lifetimes, asked bool) (step string, err error) {
	switch {
	case now.After(k.current.certificate.NotAfter):
		// Nobody trusts the expired CA any more, so there is nothing to overlap with.
		fresh, err := newKeyring(now, life)
		if err != nil {
			return "", err
		}
		*k = *fresh
		return "replaced the expired CA", nil
	case k.next == nil && k.previous == nil && (asked || now.After(renewal(k.current.certificate))):
		if k.next, err = newAuthority(now, life.CA); err != nil {
			return "", err
		}
		k.published = time.Time{}
		return "made the next CA", nil
	case k.next != nil && !k.published.IsZero() && now.Sub(k.published) >= life.Overlap:
		k.current, k.previous, k.next = k.next, k.current.certificate, nil
		k.published, k.promoted = time.Time{}, now
		return "the next CA signs now", nil
	case k.previous != nil && now.Sub(k.promoted) >= life.Leaf+life.Overlap:
		k.previous = nil
		return "forgot the previous CA", nil
	}
	return "", nil
}

// decodeKeyring reads the Secret.
func decodeKeyring(s *corev1.Secret) (*keyring, error) {
	fail := func(key string, err error) (*keyring, error) {
		return nil, fmt.Errorf("secret %s/%s, key %s: %w; to make a new CA, delete the secret, which leaves the nodes unreachable for some minutes", s.Namespace, s.Name, key, err)
	}
	k := &keyring{}
	var err error
	if k.current, err = decodeAuthority(s.Data[secretCurrent], s.Data[secretCurrentKey]); err != nil {
		return fail(secretCurrent, err)
	}
	if len(s.Data[secretNext]) > 0 {
		if k.next, err = decodeAuthority(s.Data[secretNext], s.Data[secretNextKey]); err != nil {
			return fail(secretNext, err)
		}
	}
	if len(s.Data[secretPrevious]) > 0 {
		previous, err := decodeCertificates(s.Data[secretPrevious])
		if err != nil {
			return fail(secretPrevious, err)
		}
		k.previous = previous[0]
	}
	// A time that cannot be read is zero. For published that postpones a step. For
	// promoted the end of the certificate is a safe bound.
	k.published, _ = time.Parse(time.RFC3339, s.Annotations[annotationPublish])
	if k.promoted, err = time.Parse(time.RFC3339, s.Annotations[annotationPromote]); err != nil {
		k.promoted = k.current.certificate.NotAfter
	}
	return k, nil
}

// encode writes the keyring into a Secret and keeps the Secret's other contents.
func (k *keyring) encode(s *corev1.Secret) error {
	data := maps.Clone(s.Data)
	if data == nil {
		data = map[string][]byte{}
	}
	for _, key := range []string{secretNext, secretNextKey, secretPrevious} {
		delete(data, key)
	}
	var err error
	if data[secretCurrent], data[secretCurrentKey], err = k.current.encode(); err != nil {
		return err
	}
	if k.next != nil {
		if data[secretNext], data[secretNextKey], err = k.next.encode(); err != nil {
			return err
		}
	}
	if k.previous != nil {
		data[secretPrevious] = encodeCertificates(k.previous)
	}
	annotations := maps.Clone(s.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	for key, t := range map[string]time.Time{annotationPublish: k.published, annotationPromote: k.promoted} {
		delete(annotations, key)
		if !t.IsZero() {
			annotations[key] = t.UTC().Format(time.RFC3339)
		}
	}
	s.Data, s.Annotations = data, annotations
	return nil
}
