package telemetry

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
)

func TestMain(m *testing.M) {
	// The HTTP client's idle connections.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

type plugin struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer
}

func (plugin) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func TestServer(t *testing.T) {
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
		t.Error("NodeGetInfo of a plugin that does not know it")
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
