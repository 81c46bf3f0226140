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

// placement describes on which nodes a new volume may be.
type placement struct {
	only  string   // short name of the one node; "" if there is a choice
	free  bool     // neither a pod nor a source is bound to only yet
	among []string // short names of the possible nodes; nil if all are
	claim Claim
	state claimState
}

// placementOf reads a request's source and topology. Errors: INVALID_ARGUMENT,
// NOT_FOUND for a source that is not this driver's, RESOURCE_EXHAUSTED if the
// source is on a node that the topology excludes, UNAVAILABLE.
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
		// The scheduler chose this node. The pod could not run on another node.
		p.only = preferred[0]
	case len(requisite) == 1:
		p.only, p.free = requisite[0], true
	}
	return p, nil
}

// takingPods returns the candidates to which Kubernetes would send a pod. On
// another node the volume would keep its pods waiting.
// Errors: UNAVAILABLE, with the reasons, if there is no such candidate.
func takingPods(name string, candidates []*member) ([]*member, error) {
	var open []*member
	var closed []string
	for _, n := range candidates {
		if n.NoPods == "" {
			open = append(open, n)
		} else {
			closed = append(closed, fmt.Sprintf("node %s: %s", n.Name, n.NoPods))
		}
	}
	if len(open) == 0 {
		return nil, unavailable("volume %q: none of its possible nodes takes pods now: %s", name, strings.Join(closed, "; "))
	}
	return open, nil
}

// openTo checks the only node that a volume may be on. It returns nil if the node
// takes pods, and the volume if the node does not but already has it.
// Errors: UNAVAILABLE if the node takes no pods and does not have the volume.
func (r *Router) openTo(ctx context.Context, q *csi.CreateVolumeRequest, short string) (*csi.CreateVolumeResponse, error) {
	n := r.fleet.find(short)
	if n == nil {
		return nil, nil
	}
	if _, closed := takingPods(q.GetName(), []*member{n}); closed != nil {
		existing, err := call(ctx, r, short, csi.ControllerClient.CreateVolume, q, callmeta.Conditions{OnlyExisting: true})
		if status.Code(err) == codes.NotFound {
			err = closed
		}
		return existing, err
	}
	return nil, nil
}

// terms returns the short names of the nodes in the topologies, each once and in
// their order. Errors: INVALID_ARGUMENT if there are topologies but none has this
// driver's key, because other keys do not tell where a volume can be.
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

// sourceNode returns the short name of the node that has a content source.
// Errors: INVALID_ARGUMENT, NOT_FOUND for an id that is not this driver's.
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
