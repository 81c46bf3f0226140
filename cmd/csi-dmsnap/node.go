package main

import (
	"context"
	"errors"
	"runtime"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// nodeFlags are the flags of the node role.
type nodeFlags struct {
	config, endpoint, nodeName, kubeletDir string
	cluster                                clusterFlags
}

func nodeCommand() *cobra.Command {
	var f nodeFlags
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Serve CSI for the pools of this node",
		Long: `Serve the CSI Identity, Controller and Node services for the pools of this
node on a unix socket, and what the controller asks for over TCP. Needs root, device-mapper, and in PATH: mount, blkid and
the tools of the file systems used (e2fsprogs, xfsprogs, btrfs-progs).

A pool that cannot be opened, because a disk is missing or damaged, does not keep
the others from being served: it is tried again from time to time.

On SIGTERM it ends what it is doing and exits; volumes in use are not touched.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runNode(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", "/etc/csi-dmsnap/config.yaml", "YAML file that lists the pools")
	flags.StringVar(&f.endpoint, "endpoint", defaultEndpoint, "socket to serve at")
	flags.StringVar(&f.nodeName, "node-name", "", "name of this node in the cluster (required)")
	flags.StringVar(&f.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "the kubelet's root directory; no path outside of it is touched")
	f.cluster.add(flags)
	if err := cmd.MarkFlagRequired("node-name"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

func runNode(ctx context.Context, f nodeFlags) (err error) {
	configs, err := readConfig(f.config)
	if err != nil {
		return err
	}
	// With one processor the Go scheduler takes it away from every call to the
	// kernel that lasts, and gives it back by waking threads.
	if runtime.GOMAXPROCS(0) == 1 {
		runtime.GOMAXPROCS(2)
	}
	configs = poolsOn(f.nodeName, configs)
	if len(configs) == 0 {
		klog.FromContext(ctx).Info("The configuration has no pool for this node", "node", f.nodeName)
	}
	pools, err := pool.OpenSet(ctx, configs, pool.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pools.Close()) }()
	return serveNode(ctx, f, pools)
}
