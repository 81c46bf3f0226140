package router

import (
	"context"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// noRoomAfter is how long a node's driver may be out of service, as while it is
// restarted, before the node counts as having no room.
const noRoomAfter = 60 * time.Second

// GetCapacity returns the room for new volumes of the node that the topology
// names: 0 if its driver is out of service for a minute, until then UNAVAILABLE,
// so that the last known value stays. Without a topology it is the room of all
// nodes that answer.
func (r *Router) GetCapacity(ctx context.Context, q *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	segments := q.GetAccessibleTopology().GetSegments()
	if node, ok := segments[handle.TopologyKey]; ok {
		down := r.fleet.missing(node)
		if !down.IsZero() && r.now().Sub(down) >= noRoomAfter {
			return noRoom(), nil
		}
		return call(ctx, r, node, csi.ControllerClient.GetCapacity, q, callmeta.Conditions{})
	}
	if len(segments) > 0 {
		return noRoom(), nil // nothing of ours is accessible from there
	}
	asking, cancel := context.WithTimeout(ctx, roomLimit)
	defer cancel()
	answers := ask(r.fleet.ready(), func(n member) (*csi.GetCapacityResponse, error) {
		return call(asking, r, n.short, csi.ControllerClient.GetCapacity, q, callmeta.Conditions{})
	})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	sum, answered := noRoom(), false
	var failed error
	for _, a := range answers {
		if a.err != nil {
			failed = a.err
			continue
		}
		answered = true
		sum.AvailableCapacity = min(sum.AvailableCapacity+a.value.GetAvailableCapacity(), maxBytes)
		sum.MaximumVolumeSize.Value = max(sum.MaximumVolumeSize.Value, a.value.GetMaximumVolumeSize().GetValue())
	}
	switch {
	case answered:
		return sum, nil
	case failed != nil:
		return nil, failed
	}
	return nil, unavailable("no node is ready")
}

func noRoom() *csi.GetCapacityResponse {
	return &csi.GetCapacityResponse{MaximumVolumeSize: wrapperspb.Int64(0)}
}
