package router

import (
	"context"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/handle"
)

// placement says where a new volume may go.
type placement struct {
	only  string   // short name of the one node; "" if there is a choice
	among []string // short names to choose from; nil: any node
	claim Claim
	state claimState
}

// placementOf reads a request's source and topology. Errors: INVALID_ARGUMENT,
// NOT_FOUND for a source that is not ours, RESOURCE_EXHAUSTED if the source is
// where the volume must not be, UNAVAILABLE.
func (r *Router) placementOf(ctx context.Context, q *csi.CreateVolumeRequest) (placement, error) {
	requisite, err := terms(q.GetAccessibilityRequirements().GetRequisite())
	if err != nil {
		return placement{}, err
	}
	preferred, err := terms(q.GetAccessibilityRequirements().GetPreferred())
	if err != nil {
		return placement{}, err
	}
	if q.GetVolumeContentSource() != nil {
		source, err := sourceNode(q.GetVolumeContentSource())
		if err != nil {
			return placement{}, err
		}
		if len(requisite) > 0 && !slices.Contains(requisite, source) {
			return placement{}, errorf(codes.ResourceExhausted,
				"volume %q: its source is on node %s, which the accessibility requirements do not include", q.GetName(), source)
		}
		return placement{only: source}, nil
	}
	p := placement{among: requisite}
	if p.claim, p.state, err = r.claimOf(ctx, q); err != nil {
		return placement{}, err
	}
	switch {
	case len(preferred) > 0 && (len(requisite) == 0 || p.state == claimUnnamed || p.state == claimThere && p.claim.SelectedNode != ""):
		// The scheduler chose that node. Anywhere else the pod could not run.
		p.only = preferred[0]
	case len(requisite) == 1:
		p.only = requisite[0]
	}
	return p, nil
}

// terms returns the nodes that topologies name, by their short names, each once
// and in their order. INVALID_ARGUMENT if there are topologies and none names
// a node: keys that are not ours say nothing about where a volume can be.
func terms(topologies []*csi.Topology) ([]string, error) {
	var nodes []string
	for _, t := range topologies {
		if n, ok := t.GetSegments()[handle.TopologyKey]; ok && !slices.Contains(nodes, n) {
			nodes = append(nodes, n)
		}
	}
	if len(topologies) > 0 && len(nodes) == 0 {
		return nil, invalid("the accessibility requirements have no key %s", handle.TopologyKey)
	}
	return nodes, nil
}

// sourceNode returns the short name of the node that a content source is on.
func sourceNode(s *csi.VolumeContentSource) (string, error) {
	id := s.GetSnapshot().GetSnapshotId()
	if s.GetVolume() != nil {
		id = s.GetVolume().GetVolumeId()
	}
	if id == "" {
		return "", invalid("the content source names neither a snapshot nor a volume")
	}
	i, ok := handle.Parse(id)
	if !ok {
		return "", notFound("source %q: not an id of this driver", id)
	}
	return i.Node, nil
}
