package router

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// Limits of a node's answers. A node that an attacker has taken over may answer
// anything, of any size.
const (
	maxAnswer  = 64 << 10 // bytes of an answer about one thing
	maxPage    = 1 << 20  // bytes of a page of a list
	maxHeaders = 16 << 10 // bytes of gRPC metadata, which an error's text is a part of
	maxText    = 2 << 10  // bytes of an error's text that the router passes on
	// maxBytes is more than the disks of any node have.
	maxBytes = 1 << 60
)

// falseAnswer is the error for an answer that an honest node cannot give. The
// router uses no part of such an answer.
type falseAnswer struct {
	node, method string
	cause        error
}

func (e *falseAnswer) Error() string {
	return fmt.Sprintf("node %s: the controller refused its answer to %s: %v", e.node, e.method, e.cause)
}

func (e *falseAnswer) Unwrap() error { return e.cause }

// GRPCStatus is INTERNAL: a retry succeeds once the node is repaired.
func (e *falseAnswer) GRPCStatus() *status.Status { return status.New(codes.Internal, e.Error()) }

func isFalse(err error) bool { return errors.As(err, new(*falseAnswer)) }

// witness checks all answers of a node. A node speaks only for itself: each
// volume, snapshot, source, topology and page token in an answer must belong to
// the node, and each size must be possible.
type witness struct{ node, short string }

// intercept is a grpc.UnaryClientInterceptor. It turns an answer that names
// another node's things into INTERNAL. From a list it drops such entries and logs
// that.
func (w witness) intercept(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	limit := maxAnswer
	if _, list := request.(interface{ GetMaxEntries() int32 }); list {
		limit = maxPage
	}
	err := invoke(ctx, method, request, reply, conn, append(options, grpc.MaxCallRecvMsgSize(limit))...)
	if s := status.Convert(err); s.Code() == codes.ResourceExhausted && strings.Contains(s.Message(), "message larger than max") {
		return &falseAnswer{w.node, path.Base(method), fmt.Errorf("it is larger than %d bytes", limit)} // RESOURCE_EXHAUSTED would mean a full pool
	}
	if err != nil {
		return short(err)
	}
	if err := w.check(ctx, request, reply); err != nil {
		err = &falseAnswer{w.node, path.Base(method), err}
		klog.FromContext(ctx).Error(err, "Refused an answer; an attacker may have taken over the node", "node", w.node)
		return err
	}
	return nil
}

// short shortens an error's text and drops its details, which the router does
// not use.
func short(err error) error {
	s := status.Convert(err)
	text := s.Message()
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText-3], "") + "..."
	}
	return status.Error(s.Code(), text)
}

var errUnknownAnswer = errors.New("the controller cannot check this kind of answer")

// check drops foreign entries from a list, and returns an error if the rest of
// the answer is wrong.
func (w witness) check(ctx context.Context, request, reply any) error {
	switch a := reply.(type) {
	case *csi.CreateVolumeResponse:
		// The topology binds the claim's pods.
		return cmp.Or(w.volume(a.GetVolume()), w.exactly(a.GetVolume().GetAccessibleTopology()))
	case *csi.ControllerGetVolumeResponse:
		return cmp.Or(w.volume(a.GetVolume()), w.published(a.GetStatus().GetPublishedNodeIds()), same(a.GetVolume().GetVolumeId(), request))
	case *csi.ListVolumesResponse:
		a.Entries = keep(ctx, w, a.GetEntries(), func(e *csi.ListVolumesResponse_Entry) error {
			return cmp.Or(w.volume(e.GetVolume()), w.published(e.GetStatus().GetPublishedNodeIds()))
		})
		return w.page(request, a.GetNextToken(), ids(a.GetEntries(), volumeID))
	case *csi.ControllerExpandVolumeResponse:
		return possible("size", a.GetCapacityBytes())
	case *csi.GetCapacityResponse:
		return cmp.Or(possible("room", a.GetAvailableCapacity()), possible("largest volume", a.GetMaximumVolumeSize().GetValue()),
			possible("smallest volume", a.GetMinimumVolumeSize().GetValue()))
	case *csi.ControllerGetVolumeHealthResponse:
		return cmp.Or(w.own("volume", a.GetVolumeHealth().GetVolumeId()), same(a.GetVolumeHealth().GetVolumeId(), request))
	case *csi.ControllerListVolumeHealthResponse:
		a.Entries = keep(ctx, w, a.GetEntries(), func(h *csi.VolumeHealth) error { return w.own("volume", h.GetVolumeId()) })
		return w.page(request, a.GetNextToken(), ids(a.GetEntries(), (*csi.VolumeHealth).GetVolumeId))
	case *csi.CreateSnapshotResponse:
		return w.cut(request.(*csi.CreateSnapshotRequest), a.GetSnapshot())
	case *csi.GetSnapshotResponse:
		return cmp.Or(w.snapshot(a.GetSnapshot()), same(a.GetSnapshot().GetSnapshotId(), request))
	case *csi.ListSnapshotsResponse:
		q := request.(*csi.ListSnapshotsRequest)
		a.Entries = keep(ctx, w, a.GetEntries(), func(e *csi.ListSnapshotsResponse_Entry) error {
			s := e.GetSnapshot()
			if q.GetSnapshotId() != "" && s.GetSnapshotId() != q.GetSnapshotId() || q.GetSourceVolumeId() != "" && s.GetSourceVolumeId() != q.GetSourceVolumeId() {
				return fmt.Errorf("snapshot %.200q of volume %.200q was not asked for", s.GetSnapshotId(), s.GetSourceVolumeId())
			}
			return w.snapshot(s)
		})
		return w.page(request, a.GetNextToken(), ids(a.GetEntries(), snapshotID))
	case *roleapi.ReserveResponse:
		if asked := len(request.(*roleapi.ReserveRequest).GetNames()); len(a.GetAnswers()) != asked {
			return fmt.Errorf("it has %d answers to %d questions", len(a.GetAnswers()), asked)
		}
		return nil
	case *csi.DeleteVolumeResponse, *csi.DeleteSnapshotResponse, *csi.ValidateVolumeCapabilitiesResponse, *csi.ControllerModifyVolumeResponse,
		*csi.ControllerPublishVolumeResponse, *csi.ControllerUnpublishVolumeResponse,
		*csi.ControllerGetCapabilitiesResponse, *csi.GetPluginCapabilitiesResponse:
		return nil // these answers name nothing
	}
	return errUnknownAnswer
}

// own checks that an id belongs to the node.
func (w witness) own(kind, id string) error {
	if i, ok := handle.Parse(id); !ok || i.Node != w.short {
		return fmt.Errorf("%s %.200q does not belong to this node", kind, id)
	}
	return nil
}

// same checks that an answer is about the id in the request.
func same(id string, request any) error {
	asked := ""
	switch q := request.(type) {
	case interface{ GetVolumeId() string }:
		asked = q.GetVolumeId()
	case interface{ GetSnapshotId() string }:
		asked = q.GetSnapshotId()
	}
	if id != asked {
		return fmt.Errorf("it is about %.200q, the request was about %q", id, asked)
	}
	return nil
}

// possible checks that a node can have that many bytes.
func possible(what string, bytes int64) error {
	if bytes < 0 || bytes > maxBytes {
		return fmt.Errorf("a %s of %d bytes is impossible", what, bytes)
	}
	return nil
}

func (w witness) volume(v *csi.Volume) error {
	errs := []error{w.own("volume", v.GetVolumeId()), possible("size", v.GetCapacityBytes()), w.topology(v.GetAccessibleTopology())}
	if s := v.GetContentSource().GetSnapshot(); s != nil {
		errs = append(errs, w.own("source snapshot", s.GetSnapshotId()))
	}
	if s := v.GetContentSource().GetVolume(); s != nil {
		errs = append(errs, w.own("source volume", s.GetVolumeId()))
	}
	return cmp.Or(errs...)
}

func (w witness) snapshot(s *csi.Snapshot) error {
	errs := []error{w.own("snapshot", s.GetSnapshotId()), possible("size", s.GetSizeBytes()), w.topology(s.GetAccessibleTopology())}
	if id := s.GetSourceVolumeId(); id != "" {
		errs = append(errs, w.own("source volume", id))
	}
	if id := s.GetGroupSnapshotId(); id != "" {
		errs = append(errs, w.own("group snapshot", id))
	}
	if at := s.GetCreationTime(); at != nil {
		errs = append(errs, at.CheckValid())
	}
	return cmp.Or(errs...)
}

// cut checks the answer to CreateSnapshot. The router also asks nodes that do not
// have the source volume whether they use the snapshot's name; such a node must
// name a volume of its own.
func (w witness) cut(q *csi.CreateSnapshotRequest, s *csi.Snapshot) error {
	err := cmp.Or(w.snapshot(s), w.own("source volume", s.GetSourceVolumeId()))
	if w.own("", q.GetSourceVolumeId()) == nil && s.GetSourceVolumeId() != q.GetSourceVolumeId() {
		err = cmp.Or(err, fmt.Errorf("it is of volume %.200q, not of %q", s.GetSourceVolumeId(), q.GetSourceVolumeId()))
	}
	return err
}

// topology checks that the answer grants access to no other node.
func (w witness) topology(list []*csi.Topology) error {
	for _, t := range list {
		if len(t.GetSegments()) != 1 || t.GetSegments()[handle.TopologyKey] != w.short {
			return fmt.Errorf("it is accessible from %.200v, which is not this node", t.GetSegments())
		}
	}
	return nil
}

// exactly checks that the answer grants access to this node. No topology would
// mean access from all nodes.
func (w witness) exactly(list []*csi.Topology) error {
	if len(list) != 1 {
		return fmt.Errorf("it has %d topology terms, not one", len(list))
	}
	return w.topology(list)
}

func (w witness) published(nodes []string) error {
	if slices.ContainsFunc(nodes, func(n string) bool { return n != w.node }) {
		return errors.New("it is published on another node")
	}
	return nil
}

// keep returns the entries of a list without those that are wrong, and logs the
// first error.
func keep[E any](ctx context.Context, w witness, entries []E, wrong func(E) error) []E {
	var first error
	before := len(entries)
	entries = slices.DeleteFunc(entries, func(e E) bool {
		err := wrong(e)
		if first == nil {
			first = err
		}
		return err != nil
	})
	if first != nil {
		klog.FromContext(ctx).Error(first, "Dropped foreign entries from a list; an attacker may have taken over the node", "node", w.node, "dropped", before-len(entries))
	}
	return entries
}

// page checks that a list is sorted and that its next page continues after it.
// Without that the router's own tokens would be wrong and its loops might not end.
func (w witness) page(request any, next string, ids []string) error {
	q := request.(interface {
		GetStartingToken() string
		GetMaxEntries() int32
	})
	last := q.GetStartingToken()
	for _, id := range ids {
		if id <= last {
			return fmt.Errorf("the entry %.200q follows %.200q, out of order", id, last)
		}
		last = id
	}
	if limit := q.GetMaxEntries(); limit > 0 && len(ids) > int(limit) {
		return fmt.Errorf("it has %d entries, the request allowed %d", len(ids), limit)
	}
	if next == "" {
		return nil
	}
	if next <= q.GetStartingToken() || next < last {
		return fmt.Errorf("token %.200q does not continue after %.200q", next, last)
	}
	return w.own("token", next)
}

func ids[E any](entries []E, of func(E) string) []string {
	list := make([]string, 0, len(entries))
	for _, e := range entries {
		list = append(list, of(e))
	}
	return list
}

func volumeID(e *csi.ListVolumesResponse_Entry) string { return e.GetVolume().GetVolumeId() }

func snapshotID(e *csi.ListSnapshotsResponse_Entry) string { return e.GetSnapshot().GetSnapshotId() }
