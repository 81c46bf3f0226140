package router

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
)

// CreateVolume creates a volume on the node of its source, on the node that the
// scheduler chose, or else on the node with the most room among the possible
// nodes. Two nodes never have the same volume name, see reserve.
func (r *Router) CreateVolume(ctx context.Context, q *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if q.GetName() == "" {
		return nil, invalid("no volume name is given")
	}
	ephemeral, err := r.ephemeral(ctx, q)
	if err != nil {
		return nil, err
	}
	p, err := r.placementOf(ctx, q)
	if err != nil {
		return nil, err
	}
	if p.only != "" {
		if p.free {
			if existing, err := r.openTo(ctx, q, p.only); err != nil || existing != nil {
				return existing, err
			}
		}
		return call(ctx, r, p.only, csi.ControllerClient.CreateVolume, q, callmeta.Conditions{Ephemeral: ephemeral})
	}
	end, ok := r.placing.begin(q.GetName())
	if !ok {
		return nil, aborted("volume %q is already being placed; retry later", q.GetName())
	}
	defer end()
	reservation := fmt.Sprintf("%s/%d", r.identity, r.calls.Add(1))
	existing, candidates, err := r.reserve(ctx, q, p, reservation)
	if err != nil || existing != nil {
		return existing, err
	}
	if p.state == claimGone {
		return nil, errorf(codes.FailedPrecondition, "volume %q: its claim is gone, so no volume is created", q.GetName())
	}
	if candidates, err = takingPods(q.GetName(), candidates); err != nil {
		return nil, err
	}
	node, err := r.rooms.roomiest(ctx, r, q, candidates)
	if err != nil {
		return nil, err
	}
	klog.FromContext(ctx).Info("Placing", "node", node)
	reply, err := call(ctx, r, node, csi.ControllerClient.CreateVolume, q, callmeta.Conditions{Reservation: reservation})
	if err != nil {
		r.rooms.forget(node) // it may have less room than it said, or still have the room that was subtracted
	}
	return reply, err
}
