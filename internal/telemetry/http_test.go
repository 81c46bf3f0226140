package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
)

func TestMain(m *testing.M) {
	// The HTTP client keeps idle connections.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

// plugin answers Probe only.
type plugin struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer
}

func (plugin) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

// /healthz fails while the plugin does not answer, /readyz while the process is not
// ready, and /metrics has the calls, the Go runtime and the process.
func TestServer_paths(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "csi.sock")
	p, err := NewPlugin("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	registry := NewRegistry()
	calls := NewCalls(registry, "a.driver")
	var ready atomic.Bool
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		err := Server{Healthy: p.Probe, Ready: func(context.Context) error {
			if !ready.Load() {
				return errors.New("waiting for the moon")
			}
			return nil
		}, Metrics: registry}.Run(ctx, l)
		if err != nil {
			t.Error(err)
		}
	})
	defer func() { stop(); done.Wait() }()
	get := func(path string) (int, string) {
		t.Helper()
		r, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(text)
	}
	if code, text := get("/healthz"); code != http.StatusServiceUnavailable || !strings.Contains(text, socket) {
		t.Errorf("healthz without a plugin: %d, %s", code, text)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(calls.Unary))
	csi.RegisterIdentityServer(server, plugin{})
	csi.RegisterNodeServer(server, plugin{})
	done.Go(func() { _ = server.Serve(listener) })
	defer server.Stop()
	// The connection backs off for a second after its first failure.
	for code := 0; code != http.StatusOK; code, _ = get("/healthz") {
	}
	if code, text := get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "moon") {
		t.Errorf("readyz: %d, %s", code, text)
	}
	ready.Store(true)
	if code, _ := get("/readyz"); code != http.StatusOK {
		t.Errorf("readyz: %d", code)
	}
	if err := p.NodeGetInfo(t.Context()); err == nil {
		t.Error("no error from a plugin without NodeGetInfo")
	}
	_, text := get("/metrics")
	for _, want := range []string{
		`csi_plugin_operations_seconds_count{driver_name="a.driver",grpc_status_code="OK",method_name="/csi.v1.Identity/Probe"}`,
		`csi_plugin_operations_seconds_count{driver_name="a.driver",grpc_status_code="Unimplemented",method_name="/csi.v1.Node/NodeGetInfo"} 1`,
		"go_goroutines", "process_resident_memory_bytes",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s:\n%s", want, text)
		}
	}
	if code, _ := get("/"); code != http.StatusNotFound {
		t.Errorf("/: %d", code)
	}
}

// run starts a server that runs until the test ends, and returns its address.
func run(t *testing.T, s Server) (address string) {
	t.Helper()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.Run(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(); done.Wait() })
	return l.Addr().String()
}

// open makes count connections and sends say on each of them.
func open(t *testing.T, address string, count int, say string) []net.Conn {
	t.Helper()
	var conns []net.Conn
	for range count {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.(*net.TCPConn).SetReadBuffer(4 << 10)
		_, _ = io.WriteString(c, say) // the server may have closed it
		conns = append(conns, c)
	}
	return conns
}

// get returns the body of an answer, which must be 200.
func get(t *testing.T, address, path string) string {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get("http://" + address + path)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return ""
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Errorf("%s: %d, %v", path, r.StatusCode, err)
	}
	return string(text)
}

// heap returns the bytes in use.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// large returns a registry whose metrics do not fit into a socket's buffers.
func large(t *testing.T) *prometheus.Registry {
	t.Helper()
	r := NewRegistry()
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "large", Help: "Large."}, []string{"n"})
	for i := range 2000 {
		v.WithLabelValues(fmt.Sprint(strings.Repeat("x", 100), i)).Set(1)
	}
	r.MustRegister(v)
	return r
}

// A client opens a thousand connections and sends nothing, half of a header, or many
// requests without reading the answers. The server still answers probes and scrapes,
// and its memory stays bounded.
func TestServer_flood(t *testing.T) {
	ok := func(context.Context) error { return nil }
	probes, metrics := run(t, Server{Healthy: ok, Ready: ok}), run(t, Server{Metrics: large(t)})
	get(t, metrics, "/metrics")
	for what, say := range map[string]string{
		"idle":             "",
		"half of a header": "GET /metrics HTTP/1.1\r\nHost: x\r\n",
		"not reading":      strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n", 50),
	} {
		before := heap()
		for _, address := range []string{probes, metrics} {
			conns := open(t, address, 1000, say)
			get(t, probes, "/healthz")
			get(t, probes, "/readyz")
			if text := get(t, metrics, "/metrics"); !strings.Contains(text, "go_goroutines") {
				t.Errorf("%s: no metrics in %d bytes", what, len(text))
			}
			if n := runtime.NumGoroutine(); n > 3*2*maxConnections {
				t.Errorf("%s: %d goroutines", what, n)
			}
			if after := heap(); after > before+40<<20 {
				t.Errorf("%s: %d MiB more", what, (after-before)>>20)
			}
			// The server has closed the oldest connection.
			if err := conns[0].SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, conns[0]); err != nil && strings.Contains(err.Error(), "timeout") {
				t.Errorf("%s: %v", what, err)
			}
			for _, c := range conns {
				c.Close()
			}
		}
	}
}

// The server refuses a header that is too long, and closes a connection that sends its
// header too slowly.
func TestServer_slowHeader(t *testing.T) {
	address := run(t, Server{Metrics: NewRegistry()})
	slow := open(t, address, 1, "GET /metrics HTTP/1.1\r\n")[0]
	long := open(t, address, 1, "GET /metrics HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 64<<10))[0]
	answer := make([]byte, 12)
	if _, err := io.ReadFull(long, answer); err == nil && string(answer) != "HTTP/1.1 431" {
		t.Errorf("a long header: %s", answer)
	}
	began := time.Now()
	if err := slow.SetReadDeadline(began.Add(4 * readLimit)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, slow); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Errorf("still open after %v: %v", time.Since(began), err)
	}
}

// The metrics are gathered at most once a second, however many clients scrape.
func TestServer_scrapesShareMetrics(t *testing.T) {
	var gathers atomic.Int32
	r := NewRegistry()
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "x"}, func() float64 { gathers.Add(1); return 1 }))
	address := run(t, Server{Metrics: r})
	began := time.Now()
	for range 20 {
		get(t, address, "/metrics")
	}
	if n, most := gathers.Load(), int32(time.Since(began)/gatherEvery)+1; n > most {
		t.Errorf("gathered %d times, at most %d are allowed", n, most)
	}
}
