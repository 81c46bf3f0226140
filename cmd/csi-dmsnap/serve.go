package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/internal/registration"
	"github.com/csi-dmsnap/csi-dmsnap/internal/reports"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
	"github.com/csi-dmsnap/csi-dmsnap/internal/sockets"
	"github.com/csi-dmsnap/csi-dmsnap/internal/telemetry"
	"github.com/csi-dmsnap/csi-dmsnap/internal/trust"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/driver"
)

// clusterFlags are the flags of a node that is part of a cluster.
type clusterFlags struct {
	register                     bool
	listen, http, probes         string
	trustDir, tokenFile, certDir string
}

func (f *clusterFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&f.register, "register", false, "register with the kubelet; the kubelet's directory must have the same path here as on the host")
	flags.StringVar(&f.listen, "listen", "", "TCP address where the controller calls this node over mutual TLS, such as :9808; none if empty")
	flags.StringVar(&f.http, "http", "", httpHelp)
	flags.StringVar(&f.probes, "probes", "", probesHelp)
	flags.StringVar(&f.trustDir, "trust-dir", "/etc/csi-dmsnap/trust", "directory of ca.crt, the CA certificates that authenticate the controller; the file may appear later")
	flags.StringVar(&f.tokenFile, "token-file", "/var/run/secrets/csi-dmsnap/token", "file with the service account token for the audience "+driver.Name+", which authenticates this node to the controller")
	flags.StringVar(&f.certDir, "cert-dir", "", "directory of tls.crt, tls.key and ca.crt, to use instead of a certificate from the controller")
}

// nodeParts collects the loops that a node runs beside the CSI server. The node
// ends when one of them fails.
type nodeParts struct {
	flags nodeFlags
	log   *reports.Log
	parts []func(context.Context) error
	ready []func(context.Context) error // each returns why the node is not ready yet
}

// add adds a loop and, if ready is not nil, a condition of readiness.
func (n *nodeParts) add(run func(context.Context) error, ready func() error) {
	n.parts = append(n.parts, run)
	if ready != nil {
		n.ready = append(n.ready, func(context.Context) error { return ready() })
	}
}

// isReady returns why the node is not ready, or nil if it is.
func (n *nodeParts) isReady(ctx context.Context) error {
	for _, check := range n.ready {
		if err := check(ctx); err != nil {
			return err
		}
	}
	return nil
}

// front returns the listener for the controller's calls. The caller closes it.
func (n *nodeParts) front(ctx context.Context) (front driver.Front, err error) {
	f := n.flags.cluster
	node, err := trust.NewNode(ctx, trust.NodeOptions{Name: n.flags.nodeName, TrustDir: f.trustDir, TokenFile: f.tokenFile, CertDir: f.certDir})
	if err != nil {
		return front, err
	}
	l, err := net.Listen("tcp", f.listen)
	if err != nil {
		return front, fmt.Errorf("listen for the controller: %w", err)
	}
	n.add(func(ctx context.Context) error { node.Run(ctx); return nil }, func() error {
		if !node.Enrolled() {
			return fmt.Errorf("node %s is waiting for its certificate from the controller", n.flags.nodeName)
		}
		return nil
	})
	n.add(func(ctx context.Context) error { n.log.Run(ctx); return nil }, nil)
	return driver.Front{Listener: l, Options: node.ServerOptions(), Register: func(r grpc.ServiceRegistrar) {
		node.Register(r)
		roleapi.RegisterReportsServer(r, n.log)
	}}, nil
}

// register keeps the driver registered with the kubelet.
func (n *nodeParts) register(plugin *telemetry.Plugin) error {
	socket, err := sockets.Path(n.flags.endpoint)
	if err != nil {
		return err
	}
	kubeletDir, err := filepath.Abs(n.flags.kubeletDir)
	if err != nil {
		return err
	}
	r := registration.New(registration.Options{Driver: driver.Name, Endpoint: socket, KubeletDir: kubeletDir, Ready: plugin.NodeGetInfo})
	n.add(func(ctx context.Context) error { r.Run(ctx); return nil }, func() error {
		if !r.Registered() {
			return errors.New("the kubelet has not registered the driver")
		}
		return nil
	})
	return nil
}

// serveNode serves CSI, and everything that a cluster needs beside it, until ctx
// ends or a part fails.
func serveNode(ctx context.Context, f nodeFlags, pools *pool.Set) error {
	plugin, err := telemetry.NewPlugin(f.endpoint)
	if err != nil {
		return err
	}
	defer plugin.Close()
	metrics := telemetry.NewRegistry()
	o := driver.Options{
		NodeName: f.nodeName, KubeletDir: f.kubeletDir, Version: buildVersion(), Pools: pools,
		Observe: telemetry.NewCalls(metrics, driver.Name).Unary,
	}
	n := &nodeParts{flags: f, log: reports.NewLog(), ready: []func(context.Context) error{plugin.Probe}}
	if f.cluster.listen != "" {
		front, err := n.front(ctx)
		if err != nil {
			return err
		}
		defer front.Listener.Close()
		o.Fronts = []driver.Front{front}
	}
	if f.cluster.register {
		if err := n.register(plugin); err != nil {
			return err
		}
	}
	d, err := driver.New(o)
	if err != nil {
		return err
	}
	metrics.MustRegister(d.Metrics())
	n.add(func(ctx context.Context) error { d.Report(ctx, n.log.Add); return nil }, nil)
	http, err := httpParts(f.cluster.http, f.cluster.probes, telemetry.Server{Healthy: plugin.Probe, Metrics: metrics, Ready: n.isReady})
	if err != nil {
		return err
	}
	n.parts = append(n.parts, http...)
	n.add(func(ctx context.Context) error { return d.Serve(ctx, f.endpoint) }, nil)
	return together(ctx, n.parts...)
}
