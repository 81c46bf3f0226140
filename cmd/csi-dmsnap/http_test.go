package main

import (
	"context"
	"net/http"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/telemetry"
)

// With an address for the probes, only that address serves the probes, and only the
// other one serves the metrics. Listeners of a failed start are closed.
func TestHTTPParts_probesApart(t *testing.T) {
	ok := func(context.Context) error { return nil }
	defer http.DefaultClient.CloseIdleConnections()
	for _, apart := range []bool{true, false} {
		metrics, probes := freeAddress(t), ""
		if apart {
			probes = freeAddress(t)
		}
		parts, err := httpParts(metrics, probes, telemetry.Server{Healthy: ok, Ready: ok, Metrics: telemetry.NewRegistry()})
		if err != nil {
			t.Fatal(err)
		}
		background(t, func(ctx context.Context) error { return together(ctx, parts...) })
		want := func(address, path string, code int) {
			t.Helper()
			r, err := http.Get("http://" + address + path)
			if err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
			if r.StatusCode != code {
				t.Errorf("apart %t: %s: %d", apart, path, r.StatusCode)
			}
		}
		want(metrics, "/metrics", http.StatusOK)
		if !apart {
			want(metrics, "/healthz", http.StatusOK)
			continue
		}
		want(metrics, "/healthz", http.StatusNotFound)
		want(probes, "/metrics", http.StatusNotFound)
		want(probes, "/healthz", http.StatusOK)
		want(probes, "/readyz", http.StatusOK)
	}
	taken := freeAddress(t)
	if parts, err := httpParts("no address", taken, telemetry.Server{Healthy: ok}); err == nil {
		t.Errorf("%d parts at an invalid address", len(parts))
	}
	parts, err := httpParts("", taken, telemetry.Server{Healthy: ok})
	if err != nil {
		t.Fatalf("the listener of a failed start is still open: %v", err)
	}
	background(t, func(ctx context.Context) error { return together(ctx, parts...) })
}
