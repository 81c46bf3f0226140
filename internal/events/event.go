package events

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/reports"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// emit creates the Event of a happening, unless it exists. After an error the caller
// should retry.
func (e *Emitter) emit(ctx context.Context, node string, h *roleapi.Happening) error {
	about, found, err := e.about(ctx, h)
	if err != nil {
		return err
	}
	reason, message := reports.Listed(h.GetReason(), h.GetMessage())
	if !found { // it is about a pool, or Kubernetes has no object for it
		about = corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: node, UID: types.UID(node)} // as the kubelet names nodes
		if h.GetKind() == roleapi.Happening_KIND_POOL {
			message = fmt.Sprintf("pool %s: %s", h.GetId(), message)
		} else {
			message = fmt.Sprintf("%s: %s", h.GetId(), message)
		}
	}
	return e.create(ctx, newEvent(node, h, about, reason, reports.Bounded(message)))
}

// create creates an Event, unless an Event with its name exists. After an error the
// caller should retry. create only logs errors that a retry would not solve.
func (e *Emitter) create(ctx context.Context, event *corev1.Event) error {
	_, err := e.o.Client.CoreV1().Events(event.Namespace).Create(ctx, event, metav1.CreateOptions{})
	switch {
	case err == nil, apierrors.IsAlreadyExists(err):
		return nil
	case apierrors.IsInvalid(err), apierrors.IsNotFound(err), apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		// A retry would fail the same way.
		klog.FromContext(ctx).Error(err, "Could not create an Event", "node", event.Source.Host, "about", event.InvolvedObject.Name, "reason", event.Reason, "message", event.Message)
		return nil
	}
	return err
}

// about returns the object that a happening is about. found is false for a pool, and if
// Kubernetes has no object for it.
func (e *Emitter) about(ctx context.Context, h *roleapi.Happening) (corev1.ObjectReference, bool, error) {
	switch h.GetKind() {
	case roleapi.Happening_KIND_VOLUME:
		return e.objects.claims.find(ctx, h.GetId())
	case roleapi.Happening_KIND_SNAPSHOT:
		return e.objects.snapshots.find(ctx, h.GetId())
	}
	return corev1.ObjectReference{}, false, nil
}

// newEvent returns the Event of a happening. Its name is a hash of the happening, so
// that a happening has only one Event, even if several controllers receive it, or one
// receives it twice.
func newEvent(node string, h *roleapi.Happening, about corev1.ObjectReference, reason, message string) *corev1.Event {
	which := fmt.Sprintf("%s %d", h.GetEpoch(), h.GetSequence())
	if h.GetLasting() {
		which = "" // it happens only once in the life of the object
		if reports.IsDeed(reason) {
			which = message // it has the time, and another deed may follow
		}
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{node, h.GetKind().String(), h.GetId(), reason, string(about.UID), which}, "\n")))
	name := about.Name
	if len(name) > 200 { // of 253 that a name may have
		name = strings.TrimRight(name[:200], "-.")
	}
	namespace := about.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	kind := corev1.EventTypeNormal
	if h.GetWarning() {
		kind = corev1.EventTypeWarning
	}
	at := metav1.NewTime(when(h))
	return &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Name: name + "." + hex.EncodeToString(sum[:8])},
		InvolvedObject: about, Reason: reason, Message: message, Type: kind, Count: 1, FirstTimestamp: at, LastTimestamp: at,
		Source: corev1.EventSource{Component: handle.Driver, Host: node}, ReportingController: handle.Driver, ReportingInstance: node,
	}
}
