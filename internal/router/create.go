package router

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

const (
	// reserveLimit is how long all nodes together have to answer whether they
	// have a name. It is much shorter than callmeta.ReservationTime, so that all
	// reservations still hold when the last node has given its reservation.
	reserveLimit = 10 * time.Second
	// roomLimit is how long nodes have to answer how much room they have.
	roomLimit = 5 * time.Second
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
	node, err := r.roomiest(ctx, q, candidates)
	if err != nil {
		return nil, err
	}
	klog.FromContext(ctx).Info("Placing", "node", node)
	return call(ctx, r, node, csi.ControllerClient.CreateVolume, q, callmeta.Conditions{Reservation: reservation})
}

// reserve asks every node that could have a volume of the request's name. If a
// node has the volume, reserve returns that node's answer. Otherwise it reserves
// the name on all these nodes and returns them as candidates.
// Errors: UNAVAILABLE if a node does not answer, ABORTED if another controller is
// placing the name.
//
// The reservations ensure that only one node ever creates the name. To create a
// volume, a controller must have held the name on all these nodes at one moment,
// and two controllers cannot hold the name at the same moment. Suppose that one
// controller creates the volume on a node, and a second controller asks this node
// too. If the second one asks after the creation, it learns of the volume. If it
// asked before, its reservation replaced the first one, and the node refuses the
// first controller's request.
func (r *Router) reserve(ctx context.Context, q *csi.CreateVolumeRequest, p placement, reservation string) (*csi.CreateVolumeResponse, []member, error) {
	var nodes []member
	for _, n := range r.fleet.all() {
		if (p.among == nil || slices.Contains(p.among, n.short)) && !(p.state == claimThere && p.claim.tooYoungFor(n, q.GetName())) {
			nodes = append(nodes, n)
		}
	}
	if len(nodes) == 0 {
		return nil, nil, unavailable("volume %q: there is no node to create it on", q.GetName())
	}
	began := r.now()
	asking, cancel := context.WithTimeout(ctx, reserveLimit)
	defer cancel()
	look := func(nodes []member, c callmeta.Conditions) []answer[*csi.CreateVolumeResponse] {
		return ask(nodes, func(n member) (*csi.CreateVolumeResponse, error) {
			return call(asking, r, n.short, csi.ControllerClient.CreateVolume, q, c)
		})
	}
	// A controller that does not get the first node reserves the name on no other
	// node. Otherwise two controllers could block each other with half of the
	// nodes each.
	c := callmeta.Conditions{OnlyExisting: true, Reservation: reservation}
	answers := look(nodes[:1], c)
	if status.Code(answers[0].err) != codes.NotFound {
		c.Reservation = ""
	}
	answers = append(answers, look(nodes[1:], c)...)
	if ctx.Err() != nil {
		return nil, nil, ctx.Err()
	}
	found, err := verdict(ctx, q.GetName(), answers)
	if err == nil && found == nil && since(began, r.now()) > callmeta.ReservationTime/2 {
		err = aborted("volume %q: asking all nodes about it took too long; retry later", q.GetName())
	}
	return found, nodes, err
}

// since returns how long ago began was. Only the wall clock counts the time that
// the machine was asleep, and only the monotonic clock is never set back. So since
// returns the larger of both.
func since(began, now time.Time) time.Duration {
	return max(now.Sub(began), now.Round(0).Sub(began.Round(0)))
}

// verdict evaluates the nodes' answers to the question whether they have a volume
// of that name. It returns the volume, or nil if no node has it.
func verdict(ctx context.Context, name string, answers []answer[*csi.CreateVolumeResponse]) (*csi.CreateVolumeResponse, error) {
	var found []answer[*csi.CreateVolumeResponse]
	var busy, wrong error
	var silent []string
	for _, a := range answers {
		if isFalse(a.err) {
			wrong = a.err
			continue
		}
		switch status.Code(a.err) {
		case codes.NotFound: // the node does not have the name
		case codes.Aborted:
			busy = a.err
		case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unknown, codes.Internal,
			codes.Unimplemented, codes.Unauthenticated, codes.PermissionDenied, codes.FailedPrecondition:
			silent = append(silent, fmt.Sprintf("node %s: %s", a.node.Name, status.Convert(a.err).Message()))
		default: // the node has the name, or the request is wrong
			found = append(found, a)
		}
	}
	// A volume on one node counts more than an error of another node.
	slices.SortStableFunc(found, func(a, b answer[*csi.CreateVolumeResponse]) int {
		return cmp.Compare(status.Code(a.err), status.Code(b.err))
	})
	switch {
	case len(found) > 1 && found[0].err == nil && found[1].err == nil:
		klog.FromContext(ctx).Error(nil, "Two nodes have a volume of the same name", "name", name, "node", found[0].node.Name, "second", found[1].node.Name)
		fallthrough
	case len(found) > 0:
		return found[0].value, found[0].err
	case wrong != nil:
		return nil, wrong
	case busy != nil:
		return nil, busy
	case len(silent) > 0:
		return nil, unavailable("volume %q: it may exist on a node that does not answer, so it is created nowhere else: %s", name, strings.Join(silent, "; "))
	}
	return nil, nil
}

// roomiest returns the candidate with the most room. It prefers nodes whose
// largest possible volume is large enough, and among these the nodes that take all
// pods. The node itself decides whether its room is enough when it creates the
// volume.
func (r *Router) roomiest(ctx context.Context, q *csi.CreateVolumeRequest, candidates []member) (string, error) {
	if len(candidates) == 1 {
		return candidates[0].short, nil
	}
	asking, cancel := context.WithTimeout(ctx, roomLimit)
	defer cancel()
	answers := ask(candidates, func(n member) (*csi.GetCapacityResponse, error) {
		return call(asking, r, n.short, csi.ControllerClient.GetCapacity, &csi.GetCapacityRequest{
			VolumeCapabilities: q.GetVolumeCapabilities(),
			Parameters:         q.GetParameters(),
			AccessibleTopology: &csi.Topology{Segments: map[string]string{handle.TopologyKey: n.short}},
		}, callmeta.Conditions{})
	})
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	first := answers[0].err
	answers = slices.DeleteFunc(answers, func(a answer[*csi.GetCapacityResponse]) bool { return a.err != nil })
	if len(answers) == 0 {
		return "", first
	}
	needed := q.GetCapacityRange().GetRequiredBytes()
	fits := func(c *csi.GetCapacityResponse) int {
		if c.GetMaximumVolumeSize() == nil || c.GetMaximumVolumeSize().GetValue() >= needed {
			return 1
		}
		return 0
	}
	best := slices.MaxFunc(answers, func(a, b answer[*csi.GetCapacityResponse]) int {
		return cmp.Or(cmp.Compare(fits(a.value), fits(b.value)), cmp.Compare(b.node.picky(), a.node.picky()), cmp.Compare(a.value.GetAvailableCapacity(), b.value.GetAvailableCapacity()))
	})
	return best.node.short, nil
}
