// Package telemetry shows a process to Kubernetes and Prometheus: it serves
// /healthz, /readyz and /metrics, and measures gRPC calls.
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

// checkLimit limits how long a check takes. It is shorter than the timeout of the
// kubelet's probes.
const checkLimit = 4 * time.Second

// Limits for clients. These ports have no authentication, so in a cluster without
// network policies any pod can be a client.
const (
	maxConnections = 256     // at each listener
	maxHeader      = 4 << 10 // of a request, in bytes
	readLimit      = 5 * time.Second
	writeLimit     = checkLimit + 6*time.Second
	// gatherEvery is the greatest age of the metrics in an answer.
	gatherEvery = time.Second
)

// Server answers HTTP requests about a process. It does not serve the path of a nil
// field: the probes belong at a listener of their own, so that scrapes do not delay
// them.
type Server struct {
	Healthy func(context.Context) error // /healthz: fails if only a restart helps
	Ready   func(context.Context) error // /readyz: fails if the process cannot do its work now
	Metrics prometheus.Gatherer         // /metrics
}

// NewRegistry returns a registry with the metrics of the Go runtime and of the
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

// check returns the handler of a probe: it answers 200 if f returns nil, and
// otherwise 503 with the error.
func check(f func(context.Context) error) http.Handler {
	return answer(0, "text/plain; charset=utf-8", func(ctx context.Context) ([]byte, error) { return []byte("ok\n"), f(ctx) })
}

// answer returns a handler that sends the result of do. All requests that arrive
// while do runs, or within keep after it ended, get the same bytes, so slow readers
// share memory.
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
		_, _ = w.Write(t) // the client may be gone
	})
}

// Listen listens at a TCP address such as ":9809". The caller closes the listener, or
// passes it to Run.
func Listen(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen at %q: %w", address, err)
	}
	return l, nil
}

// Run serves requests at the listener until ctx ends, and closes the listener.
//
// Errors: the listener failed.
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
	// One request per connection, so that a client that does not read holds only one
	// answer.
	server.SetKeepAlivesEnabled(false)
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	klog.FromContext(ctx).Info("Serving HTTP", "address", l.Addr().String(), "probes", s.Healthy != nil, "metrics", s.Metrics != nil)
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve at %s: %w", l.Addr(), err)
	}
	return nil
}
