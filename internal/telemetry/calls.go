package telemetry

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// buckets are those of Kubernetes' sidecars and, below 100 ms, finer ones: most
// calls to a node take some milliseconds. In seconds.
var buckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600}

// Calls measures the gRPC calls that a process answers. The names of the metric
// and of its labels are those that kubernetes-csi/csi-lib-utils gives to CSI
// drivers, so that dashboards for other drivers work.
type Calls struct {
	took prometheus.ObserverVec
}

// NewCalls registers the metric for the CSI driver of the given name.
func NewCalls(r prometheus.Registerer, driver string) *Calls {
	took := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "csi_plugin_operations_seconds",
		Help:    "Container Storage Interface operation duration with gRPC error code status total",
		Buckets: buckets,
	}, []string{"driver_name", "method_name", "grpc_status_code"})
	r.MustRegister(took)
	return &Calls{took: took.MustCurryWith(prometheus.Labels{"driver_name": driver})}
}

// Unary is the interceptor that measures. It belongs before the interceptors
// that refuse calls or change their results.
func (c *Calls) Unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	begin := time.Now()
	reply, err := handle(ctx, request)
	c.took.WithLabelValues(info.FullMethod, status.Code(err).String()).Observe(time.Since(begin).Seconds())
	return reply, err
}
