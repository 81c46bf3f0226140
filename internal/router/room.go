package router

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

const (
	// roomLimit is how long nodes have to answer how much room they have.
	roomLimit = 5 * time.Second
	// roomAge is how long an answer counts, less what this router has placed since.
	// The node itself decides whether its room is enough when it creates the volume.
	roomAge = 10 * time.Second
	// errorAge is how long an error counts instead of an answer. The claims that wait
	// then do not each wait for the node, and a claim that is retried asks it again.
	errorAge = time.Second
	// maxKinds is the number of kinds of volumes whose answers are kept.
	maxKinds = 64
)

// rooms remembers for a moment how much room the nodes have for each kind of
// volume. So claims that come together ask each node once, and do not all go to the
// node that had most room before the first of them. rooms is safe for concurrent
// use.
type rooms struct {
	mu    sync.Mutex
	kinds map[string]*kind // by a request's parameters and capabilities
}

// kind has the rooms for one kind of volumes.
type kind struct {
	turn chan struct{}    // taken while nodes are asked
	at   map[string]*room // by the node's short name; rooms.mu guards it
}

// room is how much room a node has.
type room struct {
	link    *link // to the process that answered
	told    time.Time
	err     error // instead of an answer
	free    int64 // bytes
	largest int64 // bytes of the largest possible volume; -1 if unknown
}

// old reports whether the node must be asked again.
func (m *room) old(now time.Time) bool {
	age := roomAge
	if m.err != nil {
		age = errorAge
	}
	return since(m.told, now) >= age
}

// kindOf returns the kind of volume that a request asks for.
func (s *rooms) kindOf(q *csi.CreateVolumeRequest) (*kind, error) {
	parameters := map[string]string{}
	for k, v := range q.GetParameters() {
		if !strings.HasPrefix(k, callmeta.ParameterPrefix) { // names of one claim
			parameters[k] = v
		}
	}
	key, err := proto.MarshalOptions{Deterministic: true}.Marshal(&csi.GetCapacityRequest{VolumeCapabilities: q.GetVolumeCapabilities(), Parameters: parameters})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kinds[string(key)]
	if k == nil {
		if s.kinds == nil || len(s.kinds) >= maxKinds {
			s.kinds = map[string]*kind{}
		}
		k = &kind{turn: make(chan struct{}, 1), at: map[string]*room{}}
		s.kinds[string(key)] = k
	}
	return k, nil
}

// forget drops what is known about a node.
func (s *rooms) forget(short string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.kinds {
		delete(k.at, short)
	}
}

// roomiest returns the candidate with the most room. It prefers nodes whose
// largest possible volume is large enough, and among these the nodes that take all
// pods. It asks the nodes whose room it does not know.
func (s *rooms) roomiest(ctx context.Context, r *Router, q *csi.CreateVolumeRequest, candidates []*member) (string, error) {
	if len(candidates) == 1 {
		return candidates[0].short, nil
	}
	k, err := s.kindOf(q)
	if err != nil {
		return "", err
	}
	select {
	case k.turn <- struct{}{}:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	done := make(chan struct{})
	r.work.Go(func() {
		defer close(done)
		defer func() { <-k.turn }()
		s.refresh(r, k, q, candidates) // for all who wait, so it does not end with this caller
	})
	select {
	case <-done:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	return s.take(k, q.GetCapacityRange().GetRequiredBytes(), candidates)
}

// refresh asks the candidates whose room is not known. The caller has the turn.
func (s *rooms) refresh(r *Router, k *kind, q *csi.CreateVolumeRequest, candidates []*member) {
	now := r.now()
	s.mu.Lock()
	for _, other := range s.kinds { // otherwise a kind that nobody asks for keeps the links of former processes
		maps.DeleteFunc(other.at, func(_ string, known *room) bool { return known.old(now) })
	}
	var unknown []*member
	for _, n := range candidates {
		if known := k.at[n.short]; known == nil || known.link != n.link || known.old(now) {
			unknown = append(unknown, n)
		}
	}
	s.mu.Unlock()
	if len(unknown) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, roomLimit)
	defer cancel()
	answers := ask(unknown, func(n *member) (*csi.GetCapacityResponse, error) {
		return call(ctx, r, n.short, csi.ControllerClient.GetCapacity, &csi.GetCapacityRequest{
			VolumeCapabilities: q.GetVolumeCapabilities(),
			Parameters:         q.GetParameters(),
			AccessibleTopology: &csi.Topology{Segments: map[string]string{handle.TopologyKey: n.short}},
		}, callmeta.Conditions{})
	})
	now = r.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range answers {
		known := &room{link: a.node.link, told: now, err: a.err, free: a.value.GetAvailableCapacity(), largest: -1}
		if largest := a.value.GetMaximumVolumeSize(); largest != nil {
			known.largest = largest.GetValue()
		}
		k.at[a.node.short] = known
	}
}

// take returns the roomiest candidate, and subtracts the volume from its room.
// Errors: that of the first candidate if no candidate answered.
func (s *rooms) take(k *kind, needed int64, candidates []*member) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	type choice struct {
		*member
		*room
	}
	var open []choice
	var failed error
	for _, n := range candidates {
		switch known := k.at[n.short]; {
		case known == nil: // forgotten meanwhile
		case known.err != nil:
			failed = cmp.Or(failed, known.err)
		default:
			open = append(open, choice{n, known})
		}
	}
	if len(open) == 0 {
		return "", cmp.Or(failed, unavailable("the room of the nodes is not known; retry"))
	}
	fits := func(c choice) int {
		if c.largest < 0 || c.largest >= needed {
			return 1
		}
		return 0
	}
	best := slices.MaxFunc(open, func(a, b choice) int {
		return cmp.Or(cmp.Compare(fits(a), fits(b)), cmp.Compare(b.picky(), a.picky()), cmp.Compare(a.free, b.free))
	})
	best.free -= needed
	best.largest = min(best.largest, max(best.free, 0))
	return best.short, nil
}
