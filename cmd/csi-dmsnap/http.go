package main

import (
	"context"
	"net"

	"github.com/csi-dmsnap/csi-dmsnap/internal/telemetry"
)

const (
	httpHelp   = "TCP address for /metrics, such as :9809, and for /healthz and /readyz without --probes; none if empty"
	probesHelp = "TCP address for /healthz and /readyz, such as :9807: scrapes do not keep the probes waiting there"
)

// httpParts opens the addresses at which a role tells how it is, and returns
// what serves them. Without an address for the probes they are answered at the
// other one too.
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
