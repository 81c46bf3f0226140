// Package router is the controller role. It serves the CSI Identity and
// Controller services to the stock sidecars. It reads the node from the ids in a
// call and forwards the call to that node. For a new volume it chooses the node.
// The router has no state of its own: Kubernetes knows the nodes and claims, and
// the nodes know the volumes and snapshots.
package router

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/sockets"
)

// Options are what a router needs.
type Options struct {
	Version string // of this program, for GetPluginInfo
	// Credentials returns the credentials for a connection to the node with that
	// full name. They ensure that no other node answers.
	Credentials func(node string) credentials.TransportCredentials
	Claims      Claims                      // nil if the router cannot look up claims
	Observe     grpc.UnaryServerInterceptor // if not nil, sees all calls with their results
	Clock       func() time.Time            // nil: time.Now
}

// Router serves CSI for all nodes.
type Router struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer

	version  string
	identity string // of this process, in reservations
	calls    atomic.Uint64
	fleet    *fleet
	claims   Claims
	observe  grpc.UnaryServerInterceptor
	placing  names
	rounds   *rounds
	rooms    rooms
	metrics  *metrics
	now      func() time.Time

	ctx    context.Context // of work for several callers; ends with the router
	cancel context.CancelFunc
	work   sync.WaitGroup // of such work
}

// New returns a router that knows no nodes yet. The caller tells it the nodes
// with SetNodes, serves requests with Serve, and frees the connections with Close.
func New(o Options) (*Router, error) {
	if o.Credentials == nil {
		return nil, errors.New("no credentials for connections to nodes")
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	r := &Router{
		version:  o.Version,
		identity: uuid.NewString(),
		fleet:    newFleet(o.Credentials, o.Clock),
		claims:   o.Claims,
		observe:  o.Observe,
		placing:  names{held: map[string]bool{}},
		now:      o.Clock,
	}
	r.rounds = &rounds{r: r, pause: roundPause}
	r.metrics = newMetrics(r.fleet)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

// SetNodes replaces the nodes that the router knows. It closes connections to
// pods that are gone once the calls on them have ended.
func (r *Router) SetNodes(nodes []Node) { r.fleet.set(nodes) }

// Metrics returns the router's figures for Prometheus.
func (r *Router) Metrics() prometheus.Collector { return r.metrics }

// Ready returns an error while the router cannot do its work yet.
func (r *Router) Ready() error {
	if !r.fleet.known() {
		return errors.New("the nodes are not known yet")
	}
	return nil
}

// Close closes all connections. Calls that are running fail.
func (r *Router) Close() {
	r.cancel()
	r.fleet.close()
	r.work.Wait()
}

// stopLimit is how long the router waits for calls to end when it stops. Then it
// cancels their contexts. The nodes finish the work that the calls began.
const stopLimit = 20 * time.Second

// Serve answers requests at the endpoint, "unix:///path" or a path, until ctx ends.
func (r *Router) Serve(ctx context.Context, endpoint string) error {
	listener, err := sockets.Listen(endpoint)
	if err != nil {
		return err
	}
	log := klog.FromContext(ctx)
	interceptors := []grpc.UnaryServerInterceptor{func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		return r.intercept(klog.NewContext(ctx, log), request, info, handle)
	}}
	if r.observe != nil {
		interceptors = slices.Insert(interceptors, 0, r.observe)
	}
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(interceptors...))
	csi.RegisterIdentityServer(server, r)
	csi.RegisterControllerServer(server, r)

	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		log.Info("Stopping")
		late := time.AfterFunc(stopLimit, server.Stop)
		defer late.Stop()
		server.GracefulStop()
	}()
	log.Info("Serving CSI for all nodes", "socket", endpoint, "identity", r.identity)
	if err := server.Serve(listener); err != nil {
		return fmt.Errorf("serve at %s: %w", endpoint, err)
	}
	<-stopped
	return nil
}
