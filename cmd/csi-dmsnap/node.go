package main

import (
	"context"
	"errors"
	"runtime"
	"runtime/debug"

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
		Long: `Serve the CSI Identity, Controller and Node services for the pools of this node on
a unix socket, and the controller's calls on TCP. The node needs root and
device-mapper, and in PATH mount, blkid and the tools of the file systems in use
(e2fsprogs, xfsprogs, btrfs-progs).

A pool that cannot be opened, for example because a disk is missing or damaged, does
not affect the other pools. The node retries it from time to time.

On SIGTERM the node ends its running calls and exits. Volumes in use stay in use.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runNode(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", "/etc/csi-dmsnap/config.yaml", "YAML file that lists the pools")
	flags.StringVar(&f.endpoint, "endpoint", defaultEndpoint, "socket to serve on")
	flags.StringVar(&f.nodeName, "node-name", "", "name of this node in the cluster (required)")
	flags.StringVar(&f.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "the kubelet's root directory; the node touches no path outside")
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
	// With a single processor, the Go scheduler takes the processor away from every
	// system call that lasts, and must wake a thread to give it back.
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
	go debug.FreeOSMemory() // reading the metadata of a large group leaves several times its size
	return serveNode(ctx, f, pools)
}
