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
)

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
func (r *Router) reserve(ctx context.Context, q *csi.CreateVolumeRequest, p placement, reservation string) (*csi.CreateVolumeResponse, []*member, error) {
	nodes := r.fleet.all()
	if p.among != nil || p.state == claimThere {
		nodes = slices.DeleteFunc(slices.Clone(nodes), func(n *member) bool {
			return p.among != nil && !slices.Contains(p.among, n.short) || p.state == claimThere && p.claim.tooYoungFor(n, q.GetName())
		})
	}
	if len(nodes) == 0 {
		return nil, nil, unavailable("volume %q: there is no node to create it on", q.GetName())
	}
	began := r.now()
	answers, err := r.rounds.ask(ctx, q, nodes, reservation)
	if err != nil {
		return nil, nil, err
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
