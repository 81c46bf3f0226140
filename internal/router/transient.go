package router

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
)

// ephemeral reports whether a request asks for a transient volume, and checks that
// it may have one. A transient volume loses its data when the node restarts, so
// only a claim that ends with its pod may have one. Errors: INVALID_ARGUMENT,
// FAILED_PRECONDITION if no pod owns the claim or the claim is gone, UNAVAILABLE.
func (r *Router) ephemeral(ctx context.Context, q *csi.CreateVolumeRequest) (bool, error) {
	transient, err := callmeta.Transient(q.GetParameters())
	switch {
	case err != nil:
		return false, invalid("volume %q: %v", q.GetName(), err)
	case !transient:
		return false, nil
	case q.GetVolumeContentSource() == nil:
		return false, invalid("volume %q: a transient volume needs a source, because it is a scratch copy", q.GetName())
	}
	claim, state, err := r.claimOf(ctx, q)
	switch {
	case err != nil:
		return false, err
	case state == claimUnnamed:
		return false, errorf(codes.FailedPrecondition,
			"volume %q: the request names no claim, and a transient volume is created only for a claim that a pod owns; start csi-provisioner with --extra-create-metadata", q.GetName())
	case state == claimGone:
		return false, errorf(codes.FailedPrecondition, "volume %q: its claim is gone, so no volume is created", q.GetName())
	case !claim.Ephemeral:
		return false, errorf(codes.FailedPrecondition,
			"volume %q: no pod owns its claim, and a transient volume loses its data when the node restarts; use a generic ephemeral volume", q.GetName())
	}
	return true, nil
}
