package telemetry

import (
	"context"
	"path"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// Calls counts the gRPC calls that a node answers, and how long they took.
type Calls struct {
	took *prometheus.HistogramVec
}

// NewCalls adds the figures to a registry.
func NewCalls(r prometheus.Registerer) *Calls {
	c := &Calls{took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "csi_dmsnap_node_request_duration_seconds",
		Help:    "CSI requests to the node, by method and gRPC code.",
		Buckets: []float64{0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100},
	}, []string{"method", "code"})}
	r.MustRegister(c.took)
	return c
}

// Unary is the interceptor that counts. It belongs before those that refuse or
// change the result of calls.
func (c *Calls) Unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	begin := time.Now()
	reply, err := handle(ctx, request)
	c.took.WithLabelValues(path.Base(info.FullMethod), status.Code(err).String()).Observe(time.Since(begin).Seconds())
	return reply, err
}
