package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"
)

// stopLimit is how long requests may take to end when the driver stops; then
// their contexts are cancelled, and what they began goes on at the next start.
const stopLimit = 20 * time.Second

// Serve answers requests at the endpoint, "unix:///path" or a path, until ctx
// ends. Volumes stay as they are.
func (d *Driver) Serve(ctx context.Context, endpoint string) error {
	path, err := socketPath(endpoint)
	if err != nil {
		return err
	}
	listener, err := listen(path)
	if err != nil {
		return fmt.Errorf("listen at %s: %w", path, err)
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
	log.Info("Serving CSI", "socket", path, "node", d.nodeName)
	if err := server.Serve(listener); err != nil {
		return fmt.Errorf("serve at %s: %w", path, err)
	}
	<-stopped
	return nil
}

func socketPath(endpoint string) (string, error) {
	path, ok := strings.CutPrefix(endpoint, "unix://")
	if !ok {
		path = strings.TrimPrefix(endpoint, "unix:")
	}
	if !strings.HasPrefix(path, "/") {
		return "", fmt.Errorf("endpoint %q is not unix:// and an absolute path", endpoint)
	}
	return path, nil
}

// listen opens the socket for root only. A socket that nobody answers at was
// left by a process that did not end in order.
func listen(path string) (net.Listener, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode()&fs.ModeSocket == 0:
		return nil, errors.New("there is something that is not a socket")
	default:
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			return nil, errors.New("another process is serving there")
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}
