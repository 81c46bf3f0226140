// Command csi-dmsnap is a CSI driver for local volumes with snapshots.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
)

// version is set when a release is linked.
var version string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ran, err := command().ExecuteContextC(ctx)
	klog.Flush()
	if err != nil {
		fmt.Fprintln(os.Stderr, "csi-dmsnap:", err)
		os.Exit(exitCode(ran, err))
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "csi-dmsnap",
		Short:         "CSI driver for local volumes with snapshots, on LVM2 volume groups",
		SilenceUsage:  true,
		SilenceErrors: true, // main prints them
	}
	root.PersistentPreRunE = loggingFlags(root.PersistentFlags())
	root.AddCommand(nodeCommand(), controllerCommand(), versionCommand())
	root.AddCommand(importCommand())
	root.AddCommand(operatorCommands()...)
	root.AddCommand(adoptCommand(), rollbackCommand(), forgetNodeCommand(), orphansCommand())
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), buildVersion())
		},
	}
}

// buildVersion is the release, or what the Go toolchain knows of the source.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
