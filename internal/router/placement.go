package router

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// placement says where a new volume may go.
type placement struct {
	only  string   // short name of the one node; "" if there is a choice
	free  bool     // no pod and no source is bound to that node yet
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
		p.only, p.free = requisite[0], true
	}
	return p, nil
}

// takingPods returns those of the candidates to which Kubernetes would send a
// pod: a volume elsewhere would keep its pods waiting. UNAVAILABLE, with the
// reasons, if there are none.
func takingPods(name string, candidates []member) ([]member, error) {
	var open []member
	var closed []string
	for _, n := range candidates {
		if n.NoPods == "" {
			open = append(open, n)
		} else {
			closed = append(closed, fmt.Sprintf("node %s: %s", n.Name, n.NoPods))
		}
	}
	if len(open) == 0 {
		return nil, unavailable("volume %q: no node that it may be on takes pods now: %s", name, strings.Join(closed, "; "))
	}
	return open, nil
}

// openTo returns nil if the only node that a volume may be on takes pods, or
// the volume that is there already.
func (r *Router) openTo(ctx context.Context, q *csi.CreateVolumeRequest, short string) (*csi.CreateVolumeResponse, error) {
	n := slices.DeleteFunc(r.fleet.all(), func(m member) bool { return m.short != short })
	if _, closed := takingPods(q.GetName(), n); len(n) == 1 && closed != nil {
		existing, err := call(ctx, r, short, csi.ControllerClient.CreateVolume, q, callmeta.Conditions{OnlyExisting: true})
		if status.Code(err) == codes.NotFound {
			err = closed
		}
		return existing, err
	}
	return nil, nil
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
