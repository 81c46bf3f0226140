package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dmsnapv1"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/driver"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/observe"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/registration"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/reports"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/sockets"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/trust"
)

// clusterFlags are the flags of a node role that is part of a cluster.
type clusterFlags struct {
	register                     bool
	listen, http, probes         string
	trustDir, tokenFile, certDir string
}

func (f *clusterFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&f.register, "register", false, "register with the kubelet; its directory must be seen at the same path as on the host")
	flags.StringVar(&f.listen, "listen", "", "TCP address for the controller, such as :9808; over mutual TLS")
	flags.StringVar(&f.http, "http", "", httpHelp)
	flags.StringVar(&f.probes, "probes", "", probesHelp)
	flags.StringVar(&f.trustDir, "trust-dir", "/etc/csi-dmsnap/trust", "directory with ca.crt, the CA certificates by which the controller is known; may appear later")
	flags.StringVar(&f.tokenFile, "token-file", "/var/run/secrets/csi-dmsnap/token", "service account token for the audience "+driver.Name+", by which the controller knows this node")
	flags.StringVar(&f.certDir, "cert-dir", "", "directory with tls.crt, tls.key and ca.crt to use instead of a certificate from the controller")
}

// serveNode serves CSI, and beside it what a cluster needs, until ctx ends or
// one of the parts fails.
func serveNode(ctx context.Context, f nodeFlags, pools *pool.Set) error {
	plugin, err := observe.NewPlugin(f.endpoint)
	if err != nil {
		return err
	}
	defer plugin.Close()
	metrics := observe.NewRegistry()
	o := driver.Options{
		NodeName: f.nodeName, KubeletDir: f.kubeletDir, Version: buildVersion(), Pools: pools,
		Observe: observe.NewCalls(metrics).Unary,
	}
	ready := []func(context.Context) error{plugin.Probe}
	var parts []func(context.Context) error
	log := reports.NewLog()
	if f.cluster.listen != "" {
		node, err := trust.NewNode(ctx, trust.NodeOptions{
			Name: f.nodeName, TrustDir: f.cluster.trustDir, TokenFile: f.cluster.tokenFile, CertDir: f.cluster.certDir,
		})
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", f.cluster.listen)
		if err != nil {
			return fmt.Errorf("listen for the controller: %w", err)
		}
		defer l.Close()
		o.Fronts = []driver.Front{{Listener: l, Options: node.ServerOptions(), Register: func(r grpc.ServiceRegistrar) {
			node.Register(r)
			dmsnapv1.RegisterReportsServer(r, log)
		}}}
		parts = append(parts,
			func(ctx context.Context) error { node.Run(ctx); return nil },
			func(ctx context.Context) error { log.Run(ctx); return nil },
		)
		ready = append(ready, func(context.Context) error {
			if !node.Enrolled() {
				return fmt.Errorf("node %s waits for its certificate from the controller", f.nodeName)
			}
			return nil
		})
	}
	if f.cluster.register {
		socket, err := sockets.Path(f.endpoint)
		if err != nil {
			return err
		}
		kubeletDir, err := filepath.Abs(f.kubeletDir)
		if err != nil {
			return err
		}
		r := registration.New(registration.Options{Driver: driver.Name, Endpoint: socket, KubeletDir: kubeletDir, Ready: plugin.NodeGetInfo})
		parts = append(parts, func(ctx context.Context) error { r.Run(ctx); return nil })
		ready = append(ready, func(context.Context) error {
			if !r.Registered() {
				return errors.New("the kubelet has not registered the driver")
			}
			return nil
		})
	}
	d, err := driver.New(o)
	if err != nil {
		return err
	}
	metrics.MustRegister(d.Metrics())
	parts = append(parts, func(ctx context.Context) error { d.Report(ctx, log.Add); return nil })
	http, err := httpParts(f.cluster.http, f.cluster.probes, observe.Server{Healthy: plugin.Probe, Metrics: metrics, Ready: func(ctx context.Context) error {
		for _, check := range ready {
			if err := check(ctx); err != nil {
				return err
			}
		}
		return nil
	}})
	if err != nil {
		return err
	}
	parts = append(parts, http...)
	return together(ctx, append(parts, func(ctx context.Context) error { return d.Serve(ctx, f.endpoint) })...)
}
