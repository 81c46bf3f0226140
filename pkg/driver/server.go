package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/sockets"
)

// stopLimit is how long requests may take to end when the driver stops; then
// their contexts are cancelled, and what they began goes on at the next start.
const stopLimit = 20 * time.Second

// requestWindow is how much a client may send before it is read: 64 KiB, the least
// that gRPC has, are a hundred requests.
const requestWindow = 64 << 10

// Front is a place beside the unix socket where a driver answers: the
// controller's. It is never offered the Node service, which only the kubelet
// has a use for.
type Front struct {
	Listener net.Listener
	Options  []grpc.ServerOption         // credentials, and interceptors that come before the driver's
	Register func(grpc.ServiceRegistrar) // adds other services than CSI's
}

// Serve answers requests at the endpoint, "unix:///path" or a path, and at the
// other fronts, until ctx ends. Volumes stay as they are.
func (d *Driver) Serve(ctx context.Context, endpoint string) error {
	if err := d.protectAll(nil); err != nil { // a former process may have died in between
		klog.FromContext(ctx).Error(err, "Failed to protect block volumes that are published read-only")
	}
	listener, err := sockets.Listen(endpoint)
	if err != nil {
		for _, f := range d.fronts {
			f.Listener.Close()
		}
		return err
	}
	fronts := append([]Front{{Listener: listener, Register: func(r grpc.ServiceRegistrar) { csi.RegisterNodeServer(r, d) }}}, d.fronts...)
	// One that ends takes the others with it.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan error, len(fronts))
	for _, f := range fronts {
		go func() { results <- d.serve(ctx, f) }()
	}
	var errs []error
	for range fronts {
		errs = append(errs, <-results)
		cancel()
	}
	return errors.Join(errs...)
}

func (d *Driver) serve(ctx context.Context, f Front) error {
	logger := klog.FromContext(ctx)
	log := logger.WithValues("address", f.Listener.Addr().String())
	interceptors := []grpc.UnaryServerInterceptor{func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		return d.intercept(klog.NewContext(ctx, logger), request, info, handle)
	}}
	if d.observe != nil {
		interceptors = slices.Insert(interceptors, 0, d.observe)
	}
	server := grpc.NewServer(append(slices.Clone(f.Options), grpc.ChainUnaryInterceptor(interceptors...),
		// Requests are small: to measure the connection's bandwidth, with two more messages for each, is in vain.
		grpc.StaticStreamWindowSize(requestWindow), grpc.StaticConnWindowSize(requestWindow))...)
	csi.RegisterIdentityServer(server, d)
	csi.RegisterControllerServer(server, d)
	if f.Register != nil {
		f.Register(server)
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		log.Info("Stopping")
		late := time.AfterFunc(stopLimit, server.Stop)
		defer late.Stop()
		server.GracefulStop()
	}()
	log.Info("Serving CSI", "node", d.nodeName)
	if err := server.Serve(f.Listener); err != nil {
		return fmt.Errorf("serve at %s: %w", f.Listener.Addr(), err)
	}
	<-stopped
	return nil
}
