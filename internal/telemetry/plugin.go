package telemetry

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/csi-dmsnap/csi-dmsnap/internal/sockets"
)

// Plugin asks a process's own CSI socket how it is: what its clients see.
type Plugin struct {
	conn     *grpc.ClientConn
	endpoint string
}

// NewPlugin connects to an endpoint when it is asked something.
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

// Close ends the connection.
func (p *Plugin) Close() error { return p.conn.Close() }

// Probe fails if the plugin does not answer. Whether it is ready is not asked:
// a restart would not help one that waits for something.
func (p *Plugin) Probe(ctx context.Context) error {
	if _, err := csi.NewIdentityClient(p.conn).Probe(ctx, &csi.ProbeRequest{}); err != nil {
		return fmt.Errorf("Probe at %s: %w", p.endpoint, err)
	}
	return nil
}

// NodeGetInfo fails if the plugin does not answer what the kubelet will ask.
func (p *Plugin) NodeGetInfo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	if _, err := csi.NewNodeClient(p.conn).NodeGetInfo(ctx, &csi.NodeGetInfoRequest{}); err != nil {
		return fmt.Errorf("NodeGetInfo at %s: %w", p.endpoint, err)
	}
	return nil
}
