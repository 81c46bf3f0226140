// Package events creates Kubernetes Events from the reports of nodes, which have no
// access to the API themselves.
package events

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// Node is a node whose reports the emitter can follow.
type Node struct {
	Name      string   // full
	Instance  string   // of the process that answers there
	Addresses []string // host:port, tried in this order
	// Unlabelled is the fault of the driver's topology label on the Node object; "" if
	// the label is right.
	Unlabelled string
}

// Options are what an emitter needs.
type Options struct {
	Client  kubernetes.Interface
	Dynamic dynamic.Interface                   // for snapshots, whose types are not Kubernetes' own
	Dial    func(node string) []grpc.DialOption // how to reach a node and no other
}

// Emitter follows the reports of nodes. Only the elected controller has an emitter. If
// two controllers follow a node at the same time, they still create each Event only
// once, because both give it the same name. It is safe for concurrent use.
type Emitter struct {
	o       Options
	objects objects

	ctx     context.Context // ends with the emitter; its goroutines come and go until then
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	follows map[string]*follow                 // by the node's name
	limits  map[string]flowcontrol.RateLimiter // of how many Events, by the node's name
	labels  map[string]*time.Timer             // by the name of a node whose label is wrong
}

// follow is a node whose reports a goroutine follows.
type follow struct {
	Node
	stop context.CancelFunc
}

// New returns an emitter that follows no node yet. The caller ends it with Close.
func New(ctx context.Context, o Options) *Emitter {
	e := &Emitter{o: o, objects: newObjects(o), follows: map[string]*follow{}, limits: map[string]flowcontrol.RateLimiter{}, labels: map[string]*time.Timer{}}
	e.ctx, e.cancel = context.WithCancel(ctx)
	return e
}

// Close stops following all nodes, and waits for the goroutines to end.
func (e *Emitter) Close() {
	e.SetNodes(nil)
	e.cancel()
	e.running.Wait()
}

// SetNodes replaces the nodes to follow: all of these that have an address.
func (e *Emitter) SetNodes(nodes []Node) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return
	}
	e.watchLabels(nodes)
	wanted := map[string]bool{}
	for _, n := range nodes {
		if len(n.Addresses) == 0 {
			continue
		}
		wanted[n.Name] = true
		if f := e.follows[n.Name]; f != nil {
			if f.Instance == n.Instance && slices.Equal(f.Addresses, n.Addresses) {
				continue
			}
			f.stop()
		}
		ctx, stop := context.WithCancel(e.ctx)
		e.follows[n.Name] = &follow{Node: n, stop: stop}
		limit := e.limit(n.Name)
		e.running.Go(func() { e.follow(ctx, n, limit) })
	}
	for name, f := range e.follows {
		if !wanted[name] {
			f.stop()
			delete(e.follows, name)
		}
	}
}

// Times between attempts to follow a node. Variables for the tests.
var (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// dealLimit is how long the emitter may take for one happening.
const dealLimit = 30 * time.Second

// follow creates Events from a node's reports, until ctx ends. After any error it
// starts again with the reports that were not confirmed.
func (e *Emitter) follow(ctx context.Context, n Node, limit flowcontrol.RateLimiter) {
	log := klog.FromContext(ctx).WithValues("node", n.Name)
	pause := firstRetry
	var reminded reminder
	for i := 0; ctx.Err() == nil; i++ {
		got, err := e.stream(ctx, n.Name, n.Addresses[i%len(n.Addresses)], limit, &reminded)
		if got {
			pause = firstRetry
		}
		if ctx.Err() != nil {
			return
		}
		log.V(2).Info("Not following a node's reports; retrying", "err", err, "in", pause)
		select {
		case <-ctx.Done():
		case <-time.After(spread(pause)):
		}
		pause = min(2*pause, lastRetry)
	}
}

// spread returns a random time between half of the pause and the pause, so that
// thousands of nodes which were lost together are not called again together.
func spread(pause time.Duration) time.Duration { return pause/2 + rand.N(pause/2+1) }

// stream follows a node until an error. got reports whether it has dealt with a
// happening.
func (e *Emitter) stream(ctx context.Context, node, address string, limit flowcontrol.RateLimiter, r *reminder) (got bool, err error) {
	conn, err := grpc.NewClient("passthrough:///"+address, append(e.o.Dial(node),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxHappening)), grpc.WithMaxHeaderListSize(maxHeaders),
		grpc.WithStaticStreamWindowSize(window), grpc.WithStaticConnWindowSize(window))...)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client := roleapi.NewReportsClient(conn)
	stream, err := client.Watch(ctx, &roleapi.WatchRequest{})
	if err != nil {
		return false, err
	}
	var last *roleapi.Happening
	var reminding sync.WaitGroup
	reminding.Go(func() {
		epoch, due := r.due(ctx, stream)
		for ; due; due = ctx.Err() == nil { // the stream may last for months
			if e.remind(ctx, node, conn) {
				r.epoch = epoch
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(spread(lastRetry)):
			}
		}
	})
	defer reminding.Wait()
	defer cancel()
	for {
		h, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			err = errors.New("the node ended the stream")
		}
		if err != nil {
			return got, err
		}
		if err := limit.Wait(ctx); err != nil {
			return got, err
		}
		if last != nil && last.GetEpoch() == h.GetEpoch() && h.GetSequence() > last.GetSequence()+1 {
			klog.FromContext(ctx).Info("A node dropped reports for lack of room", "node", node, "lost", h.GetSequence()-last.GetSequence()-1)
		}
		if err := e.deal(ctx, node, h, client); err != nil {
			return got, fmt.Errorf("create an Event with reason %.200s about %.200s: %w", h.GetReason(), h.GetId(), err)
		}
		got, last = true, h
	}
}

// deal creates the Event of a happening, and confirms the happening, so that the node
// forgets it. It drops a happening about another node.
func (e *Emitter) deal(ctx context.Context, node string, h *roleapi.Happening, client roleapi.ReportsClient) error {
	ctx, cancel := context.WithTimeout(ctx, dealLimit)
	defer cancel()
	if err := own(node, h); err != nil {
		klog.FromContext(ctx).Error(err, "Dropped a report; an attacker may have taken over the node", "node", node)
	} else if err := e.emit(ctx, node, h); err != nil {
		return err
	}
	_, err := client.Confirm(ctx, &roleapi.ConfirmRequest{Epoch: h.GetEpoch(), Sequence: h.GetSequence()})
	return err
}
