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

	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
	"github.com/csi-dmsnap/csi-dmsnap/internal/sockets"
)

// stopLimit is how long running calls may take to end when the driver stops.
// After that their contexts are cancelled. The next start of the driver continues
// what they began.
const stopLimit = 20 * time.Second

// requestWindow is the number of bytes that a client may send before the server
// reads them. 64 KiB is gRPC's minimum, and enough for a hundred requests.
const requestWindow = 64 << 10

// Front is a listener beside the unix socket, for the controller role. It does
// not serve the Node service, which only the kubelet needs.
type Front struct {
	Listener net.Listener                // Serve closes it
	Options  []grpc.ServerOption         // credentials, and interceptors that run before the driver's
	Register func(grpc.ServiceRegistrar) // adds services other than CSI's; may be nil
}

// Serve answers calls until ctx ends. It listens at the endpoint, which is
// "unix:///path" or a path, and at the fronts. Volumes stay mounted when Serve
// returns. Serve must be called at most once. It returns an error if any listener
// fails; then it also closes the others.
func (d *Driver) Serve(ctx context.Context, endpoint string) error {
	if err := d.protectAll(nil); err != nil { // a former process may have died between a mount and protect
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
	// If one front ends, the others must end too.
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

// serve answers calls at one front until ctx ends. It waits up to stopLimit for
// running calls.
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
		// Requests are small. With a fixed window gRPC does not measure the
		// bandwidth, which would take two more messages per request.
		grpc.StaticStreamWindowSize(requestWindow), grpc.StaticConnWindowSize(requestWindow))...)
	csi.RegisterIdentityServer(server, d)
	csi.RegisterControllerServer(server, d)
	roleapi.RegisterNamesServer(server, d)
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
