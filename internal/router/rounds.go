package router

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

const (
	// reserveLimit is how long all nodes together have to answer whether they
	// have a name. It is much shorter than callmeta.ReservationTime, so that all
	// reservations still hold when the last node has given its reservation.
	reserveLimit = 10 * time.Second
	// roundPause is how long a round may delay the next one, so that a node that
	// does not answer delays only the claims that need its answer.
	roundPause = time.Second
	// maxNames is the number of names in a round. An answer about so many names
	// fits into maxAnswer.
	maxNames = 128
)

// rounds asks nodes for volume names, and reserves the names. The names that wait
// are asked together: in a round each node gets one call, whatever the number of
// names. Otherwise a hundred claims that come together would call each node a
// hundred times. rounds is safe for concurrent use.
type rounds struct {
	r     *Router
	pause time.Duration // roundPause; tests change it

	mu      sync.Mutex
	waiting []*question
	turning bool // a goroutine starts the rounds
}

// question is whether nodes have a volume of a name.
type question struct {
	ctx         context.Context // of the caller
	request     *csi.CreateVolumeRequest
	nodes       []*member     // not empty
	reservation string        // "" if the name must not be reserved
	done        chan struct{} // closed when all nodes have answered

	mu      sync.Mutex
	missing int                                 // nodes that have not answered
	answers []answer[*csi.CreateVolumeResponse] // all but NOT_FOUND
}

// add adds a node's answer. Each node must have one answer.
func (q *question) add(n *member, value *csi.CreateVolumeResponse, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if status.Code(err) != codes.NotFound {
		q.answers = append(q.answers, answer[*csi.CreateVolumeResponse]{n, value, err})
	}
	if q.missing--; q.missing == 0 {
		close(q.done)
	}
}

// ask asks the nodes, which are at least one. It returns the answers of those
// nodes that do not have the answer NOT_FOUND. Errors: that of ctx.
func (s *rounds) ask(ctx context.Context, request *csi.CreateVolumeRequest, nodes []*member, reservation string) ([]answer[*csi.CreateVolumeResponse], error) {
	q := &question{ctx: ctx, request: request, nodes: nodes, reservation: reservation, missing: len(nodes), done: make(chan struct{})}
	s.mu.Lock()
	s.waiting = append(s.waiting, q)
	if !s.turning {
		s.turning = true
		s.r.work.Go(s.turn)
	}
	s.mu.Unlock()
	select {
	case <-q.done:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return q.answers, nil
}

// turn starts rounds until nobody waits.
func (s *rounds) turn() {
	for {
		s.mu.Lock()
		batch := s.waiting[:min(len(s.waiting), maxNames)]
		s.waiting = s.waiting[len(batch):]
		s.turning = len(batch) > 0
		s.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		finished := make(chan struct{})
		s.r.work.Go(func() {
			defer close(finished)
			s.round(batch)
		})
		late := time.NewTimer(s.pause)
		select {
		case <-finished:
		case <-late.C:
		}
		late.Stop()
	}
}

// round asks the nodes of all questions. Each question's first node is asked
// before its other nodes, and if it does not reserve the name, no other node is
// asked to. Otherwise two controllers could block each other with half of the
// nodes each. Questions with different first nodes do not wait for each other.
func (s *rounds) round(batch []*question) {
	ctx, cancel := context.WithTimeout(s.r.ctx, reserveLimit)
	defer cancel()
	batch = slices.DeleteFunc(batch, func(q *question) bool { return q.ctx.Err() != nil }) // nobody waits for the answer
	askEach(batch, func(q *question) []*member { return q.nodes[:1] }, func(first *member, questions []*question) {
		s.askNode(ctx, first, questions)
		for _, q := range questions {
			if len(q.answers) > 0 {
				q.reservation = ""
			}
		}
		askEach(questions, func(q *question) []*member { return q.nodes[1:] }, func(n *member, questions []*question) {
			s.askNode(ctx, n, questions)
		})
	})
}

// askEach calls f for each of the nodes that nodesOf returns, with all the questions
// for the node.
func askEach(questions []*question, nodesOf func(*question) []*member, f func(*member, []*question)) {
	of := map[*member][]*question{}
	for _, q := range questions {
		for _, n := range nodesOf(q) {
			of[n] = append(of[n], q)
		}
	}
	ask(slices.Collect(maps.Keys(of)), func(n *member) (struct{}, error) {
		f(n, of[n])
		return struct{}{}, nil
	})
}

// askNode asks a node for the names of all the questions, in one call if the node
// knows that call.
func (s *rounds) askNode(ctx context.Context, n *member, questions []*question) {
	answers, err := s.names(ctx, n, questions)
	switch {
	case status.Code(err) == codes.Unimplemented: // an older node
		for _, q := range questions {
			q.add(s.askName(ctx, n, q, q.reservation))
		}
		return
	case err != nil:
		for _, q := range questions {
			q.add(n, nil, err)
		}
		return
	}
	for i, q := range questions {
		switch a := answers[i]; codes.Code(a.GetCode()) {
		case codes.OK:
			_, volume, err := s.askName(ctx, n, q, "")
			if status.Code(err) == codes.NotFound { // and so the name is not reserved
				err = aborted("volume %q: it was deleted on node %s meanwhile; retry later", q.request.GetName(), n.Name)
			}
			q.add(n, volume, err)
		default:
			q.add(n, nil, named(short(status.Error(codes.Code(a.GetCode()), a.GetMessage())), n.Name))
		}
	}
}

// names asks a node for many names in one call. The answers are in the order of the
// questions.
func (s *rounds) names(ctx context.Context, n *member, questions []*question) ([]*roleapi.NameAnswer, error) {
	request := &roleapi.ReserveRequest{}
	for _, q := range questions {
		request.Names = append(request.Names, &roleapi.WantedName{
			Name: q.request.GetName(), Reservation: q.reservation, Pool: q.request.GetParameters()[callmeta.ParameterPool],
		})
	}
	a, err := invoke(ctx, s.r, n.short, callmeta.Conditions{}, func(ctx context.Context, conn grpc.ClientConnInterface) (*roleapi.ReserveResponse, error) {
		return roleapi.NewNamesClient(conn).Reserve(ctx, request)
	})
	return a.GetAnswers(), err
}

// askName asks a node for one name by a CSI call, which returns the volume.
func (s *rounds) askName(ctx context.Context, n *member, q *question, reservation string) (*member, *csi.CreateVolumeResponse, error) {
	a, err := call(ctx, s.r, n.short, csi.ControllerClient.CreateVolume, q.request, callmeta.Conditions{OnlyExisting: true, Reservation: reservation})
	return n, a, err
}
