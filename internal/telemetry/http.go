// Package telemetry has what Kubernetes and Prometheus see of a process: the
// paths /healthz, /readyz and /metrics, and counts of gRPC calls.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/sockets"
)

// checkLimit is how long a check may take: less than what the kubelet is told
// to wait.
const checkLimit = 4 * time.Second

// Limits of what clients may take up. Nobody shows who they are at these ports, so that any pod of a
// cluster without network policies can be one.
const (
	maxConnections = 256     // at each listener
	maxHeader      = 4 << 10 // bytes of a request
	readLimit      = 5 * time.Second
	writeLimit     = checkLimit + 6*time.Second
	// gatherEvery is how old figures may be that are given out.
	gatherEvery = time.Second
)

// Server answers HTTP requests about a process. What is nil it does not offer:
// the probes belong at a listener of their own, so that scrapes do not keep
// them waiting.
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
	if s.Healthy != nil {
		mux.Handle("GET /healthz", check(s.Healthy))
	}
	if s.Ready != nil {
		mux.Handle("GET /readyz", check(s.Ready))
	}
	if s.Metrics != nil {
		mux.Handle("GET /metrics", answer(gatherEvery, string(expfmt.NewFormat(expfmt.TypeTextPlain)),
			func(context.Context) ([]byte, error) { return page(s.Metrics) }))
	}
	return mux
}

func check(f func(context.Context) error) http.Handler {
	return answer(0, "text/plain; charset=utf-8", func(ctx context.Context) ([]byte, error) { return []byte("ok\n"), f(ctx) })
}

// answer answers with what do returns: the same bytes to all who ask meanwhile,
// however slowly they read.
func answer(keep time.Duration, kind string, do func(context.Context) ([]byte, error)) http.Handler {
	text := &shared[[]byte]{do: do, keep: keep}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), writeLimit)
		defer cancel()
		t, err := text.get(ctx)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", kind)
		_, _ = w.Write(t) // to a client that may be gone
	})
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
	open := sockets.NewNewest(maxConnections)
	server := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: readLimit,
		ReadTimeout:       readLimit,
		WriteTimeout:      writeLimit,
		MaxHeaderBytes:    maxHeader,
		ConnState: func(c net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				open.Add(c)
			case http.StateClosed, http.StateHijacked:
				open.Remove(c)
			}
		},
	}
	// One request per connection: who does not read holds one answer.
	server.SetKeepAlivesEnabled(false)
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	klog.FromContext(ctx).Info("Serving HTTP", "address", l.Addr().String(), "probes", s.Healthy != nil, "metrics", s.Metrics != nil)
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve at %s: %w", l.Addr(), err)
	}
	return nil
}
