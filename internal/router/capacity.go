package router

import (
	"context"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// noRoomAfter is how long a node's driver may be out of service, for example
// during a restart, before the node counts as full.
const noRoomAfter = 60 * time.Second

// GetCapacity returns how much room the node in the topology has for new volumes.
// While the node's driver is out of service the answer is UNAVAILABLE, so that
// the last known value stays, and 0 after a minute. Without a topology GetCapacity
// returns the room of all nodes that answer.
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
		return noRoom(), nil // no volume of this driver is accessible from there
	}
	asking, cancel := context.WithTimeout(ctx, roomLimit)
	defer cancel()
	answers := ask(r.fleet.ready(), func(n *member) (*csi.GetCapacityResponse, error) {
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
