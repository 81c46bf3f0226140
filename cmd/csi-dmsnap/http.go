package main

import (
	"context"
	"net"

	"github.com/csi-dmsnap/csi-dmsnap/internal/telemetry"
)

const (
	httpHelp   = "TCP address for /metrics, such as :9809, and without --probes also for /healthz and /readyz; none if empty"
	probesHelp = "TCP address for /healthz and /readyz, such as :9807, so that scrapes do not delay the probes"
)

// httpParts listens at the addresses for metrics and probes, and returns the
// functions that serve them. If the address for probes is empty, the address for
// metrics serves the probes too. The functions close the listeners.
func httpParts(metrics, probes string, s telemetry.Server) (parts []func(context.Context) error, err error) {
	var listeners []net.Listener
	serve := func(address string, s telemetry.Server) error {
		l, err := telemetry.Listen(address)
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
		parts = append(parts, func(ctx context.Context) error { return s.Run(ctx, l) })
		return nil
	}
	if probes != "" {
		err = serve(probes, telemetry.Server{Healthy: s.Healthy, Ready: s.Ready})
		s = telemetry.Server{Metrics: s.Metrics}
	}
	if err == nil && metrics != "" {
		err = serve(metrics, s)
	}
	if err != nil {
		for _, l := range listeners {
			l.Close()
		}
		return nil, err
	}
	return parts, nil
}
