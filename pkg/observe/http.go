// Package observe has what Kubernetes and Prometheus see of a process: the
// paths /healthz, /readyz and /metrics, and counts of gRPC calls.
package observe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/klog/v2"
)

// checkLimit is how long a check may take: less than what the kubelet is told
// to wait.
const checkLimit = 4 * time.Second

// Server answers HTTP requests about a process.
type Server struct {
	Healthy func(context.Context) error // /healthz: fails if only a restart helps
	Ready   func(context.Context) error // /readyz: fails if the process cannot do its work now
	Metrics prometheus.Gatherer         // /metrics
}

// NewRegistry returns a registry with the figures of the Go runtime and of the
// process.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

func (s Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", check(s.Healthy))
	mux.Handle("GET /readyz", check(s.Ready))
	// One figure that cannot be had does not keep the others back.
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.Metrics, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	return mux
}

func check(f func(context.Context) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), checkLimit)
		defer cancel()
		if err := f(ctx); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	}
}

// Listen opens a TCP address such as ":9809".
func Listen(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen at %q: %w", address, err)
	}
	return l, nil
}

// Run answers at the listener until ctx ends.
func (s Server) Run(ctx context.Context, l net.Listener) error {
	server := &http.Server{Handler: s.handler(), ReadHeaderTimeout: checkLimit}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	klog.FromContext(ctx).Info("Serving /healthz, /readyz and /metrics", "address", l.Addr().String())
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve at %s: %w", l.Addr(), err)
	}
	return nil
}
