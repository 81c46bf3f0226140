package telemetry

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/csi-dmsnap/csi-dmsnap/internal/sockets"
)

// Plugin calls a process's own CSI socket, as its clients do. Its methods may be
// called concurrently.
type Plugin struct {
	conn     *grpc.ClientConn
	endpoint string
}

// NewPlugin returns a Plugin that connects to the endpoint at its first call. The
// caller closes it.
//
// Errors: the endpoint is not a unix socket's.
func NewPlugin(endpoint string) (*Plugin, error) {
	path, err := sockets.Path(endpoint)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", endpoint, err)
	}
	return &Plugin{conn: conn, endpoint: endpoint}, nil
}

// Close closes the connection.
func (p *Plugin) Close() error { return p.conn.Close() }

// Probe returns an error if the plugin does not answer. It ignores whether the plugin
// is ready, because a restart would not help a plugin that waits.
func (p *Plugin) Probe(ctx context.Context) error {
	if _, err := csi.NewIdentityClient(p.conn).Probe(ctx, &csi.ProbeRequest{}); err != nil {
		return fmt.Errorf("Probe at %s: %w", p.endpoint, err)
	}
	return nil
}

// NodeGetInfo returns an error if the plugin does not answer the call that the
// kubelet makes when it registers the plugin.
func (p *Plugin) NodeGetInfo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	if _, err := csi.NewNodeClient(p.conn).NodeGetInfo(ctx, &csi.NodeGetInfoRequest{}); err != nil {
		return fmt.Errorf("NodeGetInfo at %s: %w", p.endpoint, err)
	}
	return nil
}
