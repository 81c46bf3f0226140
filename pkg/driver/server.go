package driver

import (
	"context"
	"fmt"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/sockets"
)

// stopLimit is how long requests may take to end when the driver stops; then
// their contexts are cancelled, and what they began goes on at the next start.
const stopLimit = 20 * time.Second

// Serve answers requests at the endpoint, "unix:///path" or a path, until ctx
// ends. Volumes stay as they are.
func (d *Driver) Serve(ctx context.Context, endpoint string) error {
	listener, err := sockets.Listen(endpoint)
	if err != nil {
		return err
	}
	log := klog.FromContext(ctx)
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		return d.intercept(klog.NewContext(ctx, log), request, info, handle)
	}))
	csi.RegisterIdentityServer(server, d)
	csi.RegisterControllerServer(server, d)
	csi.RegisterNodeServer(server, d)

	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		log.Info("Stopping")
		late := time.AfterFunc(stopLimit, server.Stop)
		defer late.Stop()
		server.GracefulStop()
	}()
	log.Info("Serving CSI", "socket", endpoint, "node", d.nodeName)
	if err := server.Serve(listener); err != nil {
		return fmt.Errorf("serve at %s: %w", endpoint, err)
	}
	<-stopped
	return nil
}
