package router

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
)

// ephemeral tells whether a request may make a transient volume, and asks for
// one. What is written to such a volume is lost when the node restarts, so only
// a claim may have one that ends with its pod anyway. Errors: INVALID_ARGUMENT,
// FAILED_PRECONDITION if the claim is to be kept, or not there; UNAVAILABLE.
func (r *Router) ephemeral(ctx context.Context, q *csi.CreateVolumeRequest) (bool, error) {
	transient, err := callmeta.Transient(q.GetParameters())
	switch {
	case err != nil:
		return false, invalid("volume %q: %v", q.GetName(), err)
	case !transient:
		return false, nil
	case q.GetVolumeContentSource() == nil:
		return false, invalid("volume %q: a transient volume needs a source: it is a scratch copy of that", q.GetName())
	}
	claim, state, err := r.claimOf(ctx, q)
	switch {
	case err != nil:
		return false, err
	case state == claimUnnamed:
		return false, errorf(codes.FailedPrecondition,
			"volume %q: it is not known for which claim it is (csi-provisioner needs --extra-create-metadata): a transient volume is only made for a claim that a pod owns", q.GetName())
	case state == claimGone:
		return false, errorf(codes.FailedPrecondition, "volume %q: its claim is gone, nothing is made for it", q.GetName())
	case !claim.Ephemeral:
		return false, errorf(codes.FailedPrecondition,
			"volume %q: no pod owns its claim: what is written to a transient volume is lost when the node restarts, so it is only made for a generic ephemeral volume of a pod", q.GetName())
	}
	return true, nil
}
