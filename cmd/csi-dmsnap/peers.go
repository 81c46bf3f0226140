package main

import (
	"context"
	"errors"

	"github.com/spf13/pflag"
	"google.golang.org/grpc/credentials"

	"github.com/csi-dmsnap/csi-dmsnap/internal/cluster"
	"github.com/csi-dmsnap/csi-dmsnap/internal/election"
	"github.com/csi-dmsnap/csi-dmsnap/internal/events"
	"github.com/csi-dmsnap/csi-dmsnap/internal/trust"
)

// trustFlags are the flags for the authentication of controller and nodes.
type trustFlags struct {
	podName, nodeServiceAccount, secret, configMap, lease, certDir string
}

func (f *trustFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.podName, "pod-name", "", "name of this pod (required)")
	flags.StringVar(&f.nodeServiceAccount, "node-service-account", "csi-dmsnap-node", "service account of the nodes' pods")
	flags.StringVar(&f.secret, "trust-secret", "csi-dmsnap-ca", "Secret for the key of the certificate authority; the elected controller makes it")
	flags.StringVar(&f.configMap, "trust-configmap", "csi-dmsnap-trust", "ConfigMap for the certificates of the certificate authority, which the nodes read; the elected controller makes it")
	flags.StringVar(&f.lease, "lease", "csi-dmsnap-controller", "Lease that elects the controller which issues certificates and emits Events")
	flags.StringVar(&f.certDir, "cert-dir", "", "directory of tls.crt, tls.key and ca.crt to use; then the controller issues no certificates")
}

// peers authenticates the nodes to a controller. ready reports whether the
// controller has a certificate; parts must run while the controller serves.
type peers struct {
	credentials func(node string) credentials.TransportCredentials
	ready       func() bool
	parts       []func(context.Context) error
}

// trustedPeers authenticates nodes by certificates. The elected controller issues
// the certificates, and makes Events of the nodes' reports.
func trustedPeers(ctx context.Context, f controllerFlags, clients apiClients) peers {
	c := trust.NewController(ctx, trust.ControllerOptions{
		Client: clients.trust, Namespace: f.namespace, Secret: f.trust.secret, ConfigMap: f.trust.configMap, CertDir: f.trust.certDir,
	})
	lease := election.Lease{Client: clients.lease, Namespace: f.namespace, Name: f.trust.lease, Identity: f.trust.podName}
	nodes := trust.NodePods{Selector: f.nodeSelector, DaemonSet: f.nodeDaemonSet, ServiceAccount: f.trust.nodeServiceAccount, Port: f.nodePort}
	return peers{
		credentials: c.Credentials,
		ready:       c.Ready,
		parts: []func(context.Context) error{c.Run, func(ctx context.Context) error {
			ctx, stop := context.WithCancel(ctx)
			defer stop()
			var failed error
			return errors.Join(lease.Run(ctx, func(term context.Context) {
				failed = together(term,
					func(ctx context.Context) error { c.Keep(ctx); return nil },
					func(ctx context.Context) error { return c.Enrol(ctx, nodes) },
					func(ctx context.Context) error {
						e := events.New(ctx, events.Options{Client: clients.events, Dynamic: clients.snapshots, Dial: c.DialOptions})
						defer e.Close()
						pods := cluster.NodePods{Namespace: f.namespace, Selector: f.nodeSelector, DaemonSet: f.nodeDaemonSet}
						return cluster.WatchNodes(ctx, clients.events, pods, func(list []cluster.Node) { e.SetNodes(reporting(list, f.nodePort)) })
					},
				)
				if failed != nil {
					stop() // drop the lease, so that another controller is elected
				}
			}), failed)
		}},
	}
}

// reporting returns the nodes that Kubernetes knows, in the form of the emitter of
// Events.
func reporting(list []cluster.Node, port uint16) []events.Node {
	nodes := make([]events.Node, 0, len(list))
	for i, n := range routed(list, port) {
		nodes = append(nodes, events.Node{Name: n.Name, Instance: n.Instance, Addresses: n.Addresses, Unlabelled: list[i].Unlabelled})
	}
	return nodes
}
