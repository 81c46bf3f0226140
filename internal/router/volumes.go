package router

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// onVolume forwards a request to the node of its volume.
func onVolume[Q interface{ GetVolumeId() string }, A any](ctx context.Context, r *Router, m method[Q, A], q Q) (A, error) {
	return forward(ctx, r, m, q, "volume", q.GetVolumeId())
}

// onSnapshot forwards a request to the node of its snapshot.
func onSnapshot[Q interface{ GetSnapshotId() string }, A any](ctx context.Context, r *Router, m method[Q, A], q Q) (A, error) {
	return forward(ctx, r, m, q, "snapshot", q.GetSnapshotId())
}

// forward forwards a request to the node in the id. Errors: those of invoke,
// INVALID_ARGUMENT without an id, NOT_FOUND for an id that is not this driver's.
func forward[Q, A any](ctx context.Context, r *Router, m method[Q, A], q Q, kind, id string) (A, error) {
	var none A
	if id == "" {
		return none, invalid("no %s id is given", kind)
	}
	i, ok := handle.Parse(id)
	if !ok {
		return none, notFound("%s %q: not an id of this driver", kind, id)
	}
	return call(ctx, r, i.Node, m, q, callmeta.Conditions{})
}

// foreign reports whether an id is given and is not this driver's. Such a volume
// or snapshot does not exist: it counts as deleted and appears in no list.
func foreign(id string) bool {
	_, ok := handle.Parse(id)
	return id != "" && !ok
}

// DeleteVolume deletes a volume.
func (r *Router) DeleteVolume(ctx context.Context, q *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if foreign(q.GetVolumeId()) {
		return &csi.DeleteVolumeResponse{}, nil
	}
	return onVolume(ctx, r, csi.ControllerClient.DeleteVolume, q)
}

// ControllerExpandVolume grows a volume.
func (r *Router) ControllerExpandVolume(ctx context.Context, q *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	return onVolume(ctx, r, csi.ControllerClient.ControllerExpandVolume, q)
}

// ControllerModifyVolume changes a volume's mutable parameters.
func (r *Router) ControllerModifyVolume(ctx context.Context, q *csi.ControllerModifyVolumeRequest) (*csi.ControllerModifyVolumeResponse, error) {
	return onVolume(ctx, r, csi.ControllerClient.ControllerModifyVolume, q)
}

// ControllerPublishVolume makes a volume available on a node.
func (r *Router) ControllerPublishVolume(ctx context.Context, q *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	return onVolume(ctx, r, csi.ControllerClient.ControllerPublishVolume, q)
}

// ControllerUnpublishVolume undoes ControllerPublishVolume.
func (r *Router) ControllerUnpublishVolume(ctx context.Context, q *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	return onVolume(ctx, r, csi.ControllerClient.ControllerUnpublishVolume, q)
}

// ValidateVolumeCapabilities confirms capabilities that a volume offers.
func (r *Router) ValidateVolumeCapabilities(ctx context.Context, q *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	return onVolume(ctx, r, csi.ControllerClient.ValidateVolumeCapabilities, q)
}

// ControllerGetVolume returns one volume.
func (r *Router) ControllerGetVolume(ctx context.Context, q *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	return onVolume(ctx, r, csi.ControllerClient.ControllerGetVolume, q)
}

// ControllerGetVolumeHealth returns the problems of a volume.
func (r *Router) ControllerGetVolumeHealth(ctx context.Context, q *csi.ControllerGetVolumeHealthRequest) (*csi.ControllerGetVolumeHealthResponse, error) {
	return onVolume(ctx, r, csi.ControllerClient.ControllerGetVolumeHealth, q)
}
