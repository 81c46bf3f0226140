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
	// have a name. It leaves most of callmeta.ReservationTime, so that all
	// reservations hold at the moment when the last one was given.
	reserveLimit = 10 * time.Second
	// roomLimit is how long nodes have to say how much room they have.
	roomLimit = 5 * time.Second
)

// CreateVolume makes a volume on the node of its source, on the node that the
// scheduler chose, or on the node with most room of those that it may choose
// from. A name is never on two nodes: see reserve.
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
		return nil, aborted("volume %q is being placed, ask again", q.GetName())
	}
	defer end()
	reservation := fmt.Sprintf("%s/%d", r.identity, r.calls.Add(1))
	existing, candidates, err := r.reserve(ctx, q, p, reservation)
	if err != nil || existing != nil {
		return existing, err
	}
	if p.state == claimGone {
		return nil, errorf(codes.FailedPrecondition, "volume %q: its claim is gone, nothing is made for it", q.GetName())
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

// reserve asks every node that could have a volume of the request's name. If
// one has it, its answer is returned. If none has it, the name is reserved on
// all of them, and they are returned as candidates. UNAVAILABLE if one does not
// answer, ABORTED if another controller is placing the name.
//
// Why that is enough: to create, a controller must at one moment have had the
// name on all nodes that could have it. Two controllers cannot have it at the
// same moment. The later one asked the node that the earlier one created on
// either after that, and was told so; or before, and then the earlier one's
// reservation there was replaced and its request is refused.
func (r *Router) reserve(ctx context.Context, q *csi.CreateVolumeRequest, p placement, reservation string) (*csi.CreateVolumeResponse, []member, error) {
	var nodes []member
	for _, n := range r.fleet.all() {
		if (p.among == nil || slices.Contains(p.among, n.short)) && !(p.state == claimThere && p.claim.tooYoungFor(n, q.GetName())) {
			nodes = append(nodes, n)
		}
	}
	if len(nodes) == 0 {
		return nil, nil, unavailable("volume %q: no node is there to make it on", q.GetName())
	}
	began := r.now()
	asking, cancel := context.WithTimeout(ctx, reserveLimit)
	defer cancel()
	look := func(nodes []member, c callmeta.Conditions) []answer[*csi.CreateVolumeResponse] {
		return ask(nodes, func(n member) (*csi.CreateVolumeResponse, error) {
			return call(asking, r, n.short, csi.ControllerClient.CreateVolume, q, c)
		})
	}
	// Who does not get the first node reserves nothing on the others, so that
	// two controllers do not keep each other out with half of the nodes each.
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
		err = aborted("volume %q: asking all nodes for it took too long, ask again", q.GetName())
	}
	return found, nodes, err
}

// since returns how long ago began was, also if the machine was asleep meanwhile:
// only the clock on the wall sees that, and only the other one is never set back.
func since(began, now time.Time) time.Duration {
	return max(now.Sub(began), now.Round(0).Sub(began.Round(0)))
}

// verdict reads the nodes' answers to whether they have a volume of that name:
// the volume; or nil if none has it.
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
		case codes.NotFound: // it does not have the name
		case codes.Aborted:
			busy = a.err
		case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unknown, codes.Internal,
			codes.Unimplemented, codes.Unauthenticated, codes.PermissionDenied, codes.FailedPrecondition:
			silent = append(silent, fmt.Sprintf("node %s: %s", a.node.Name, status.Convert(a.err).Message()))
		default: // it has the name, or the request makes no sense
			found = append(found, a)
		}
	}
	// One node's complaint does not stand against another one's volume.
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
		return nil, unavailable("volume %q: it may be on a node that does not answer, so it is not made on another one: %s", name, strings.Join(silent, "; "))
	}
	return nil, nil
}

// roomiest returns the candidate with most room: of those where the largest
// possible volume is large enough, if there are any, and of these of the ones
// that take all pods, if there are any. Whether the room is enough the node
// itself says when it is asked to create.
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
