package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/spf13/cobra"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/cluster"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/router"
	"github.com/csi-dmsnap/csi-dmsnap/internal/telemetry"
)

// controllerFlags are the flags of the controller role.
type controllerFlags struct {
	endpoint, namespace, nodeSelector, nodeDaemonSet, kubeconfig, http, probes string
	nodePort                                                                   uint16
	trust                                                                      trustFlags
}

func controllerCommand() *cobra.Command {
	var f controllerFlags
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Serve CSI for all nodes of a cluster",
		Long: `Serve the CSI Identity and Controller services for the sidecars csi-provisioner,
csi-snapshotter and csi-resizer on a unix socket, and forward each call to its node.
The controller keeps no state; several may run at the same time.

On SIGTERM the controller waits for its running calls and exits. Work that they have
started continues on the nodes.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runController(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.endpoint, "endpoint", "unix:///csi/csi.sock", "socket to serve on")
	flags.StringVar(&f.namespace, "namespace", "", "namespace of the driver's pods (required)")
	flags.StringVar(&f.nodeSelector, "node-selector", "app.kubernetes.io/component=node", "label selector of the nodes' pods")
	flags.StringVar(&f.nodeDaemonSet, "node-daemonset", "csi-dmsnap-node", "names of the DaemonSets that own the nodes' pods, separated by commas")
	flags.Uint16Var(&f.nodePort, "node-port", 9808, "port on which the nodes' pods accept calls")
	flags.StringVar(&f.http, "http", "", httpHelp)
	flags.StringVar(&f.probes, "probes", "", probesHelp)
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig file for the Kubernetes API; if empty, the controller uses the pod's service account")
	f.trust.add(flags)
	for _, name := range []string{"namespace", "pod-name"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flag is defined above
		}
	}
	return cmd
}

func runController(ctx context.Context, f controllerFlags) error {
	config, err := cluster.Config(f.kubeconfig, "csi-dmsnap-controller/"+buildVersion())
	if err != nil {
		return err
	}
	// Each kind of work has its own client, and so its own limit of requests per
	// second. If all shared one, thousands of nodes that report something or need a
	// certificate would keep claims waiting, and the leader would lose its lease.
	var all apiClients
	for _, c := range []*kubernetes.Interface{&all.claims, &all.lease, &all.trust, &all.events} {
		if *c, err = kubernetes.NewForConfig(config); err != nil {
			return fmt.Errorf("client of the Kubernetes API: %w", err)
		}
	}
	if all.snapshots, err = dynamic.NewForConfig(config); err != nil {
		return fmt.Errorf("client of the Kubernetes API: %w", err)
	}
	return serveController(ctx, f, all.claims, trustedPeers(ctx, f, all))
}

// apiClients are the clients of the Kubernetes API, by their work.
type apiClients struct {
	claims, lease, trust, events kubernetes.Interface
	snapshots                    dynamic.Interface // for the work of events
}

// serveController runs the parts of the controller until ctx ends or a part
// fails.
func serveController(ctx context.Context, f controllerFlags, client kubernetes.Interface, nodes peers) error {
	registry := telemetry.NewRegistry()
	r, err := router.New(router.Options{
		Version: buildVersion(), Credentials: nodes.credentials, Claims: claims{client}, Observe: telemetry.NewCalls(registry, handle.Driver).Unary,
	})
	if err != nil {
		return err
	}
	defer r.Close()
	registry.MustRegister(r.Metrics())
	parts := []func(context.Context) error{
		func(ctx context.Context) error { return r.Serve(ctx, f.endpoint) },
		func(ctx context.Context) error {
			pods := cluster.NodePods{Namespace: f.namespace, Selector: f.nodeSelector, DaemonSet: f.nodeDaemonSet}
			return cluster.WatchNodes(ctx, client, pods, func(list []cluster.Node) { r.SetNodes(routed(list, f.nodePort)) })
		},
	}
	http, err := httpParts(f.http, f.probes, telemetry.Server{
		Healthy: func(context.Context) error { return nil }, // the answer itself shows it
		Ready: func(context.Context) error {
			if !nodes.ready() {
				return errors.New("the controller has no certificate yet")
			}
			return r.Ready()
		},
		Metrics: registry,
	})
	if err != nil {
		return err
	}
	return together(ctx, append(append(parts, http...), nodes.parts...)...)
}

// routed returns the nodes that Kubernetes knows, in the router's form. port is
// where the nodes' pods accept calls.
func routed(list []cluster.Node, port uint16) []router.Node {
	nodes := make([]router.Node, 0, len(list))
	for _, n := range list {
		r := router.Node{
			Name: n.Name, Instance: n.UID, NotReady: n.NotReady, Silent: n.Silent, NoPods: n.NoPods, PickyPods: n.PickyPods,
		}
		for _, ip := range n.IPs {
			r.Addresses = append(r.Addresses, net.JoinHostPort(ip, strconv.Itoa(int(port))))
		}
		nodes = append(nodes, r)
	}
	return nodes
}

// claims looks up the cluster's claims for the router.
type claims struct{ client kubernetes.Interface }

// Claim implements router.Claims.
func (c claims) Claim(ctx context.Context, namespace, name string) (router.Claim, bool, error) {
	claim, found, err := cluster.FindClaim(ctx, c.client, namespace, name)
	return router.Claim{UID: claim.UID, Created: claim.Created, SelectedNode: claim.SelectedNode, Ephemeral: claim.Ephemeral}, found, err
}
