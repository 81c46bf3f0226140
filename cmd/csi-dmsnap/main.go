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

// version is the release; the linker sets it.
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

// command returns the program's root command.
func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "csi-dmsnap",
		Short: "CSI driver for local volumes with snapshots, on LVM2 volume groups",
		Long: `csi-dmsnap is a CSI driver for local volumes with snapshots, on LVM2 volume
groups. The same program serves CSI, and has commands for the operators of pools.

Exit codes: 0 if a command succeeds, 1 if it fails. Only check differs: it exits
with 1 if it finds problems, and with 2 if it fails or cannot look at everything.`,
		SilenceUsage:  true,
		SilenceErrors: true, // main prints them
	}
	root.PersistentPreRunE = loggingFlags(root.PersistentFlags())
	group := func(title string, commands ...*cobra.Command) {
		root.AddGroup(&cobra.Group{ID: title, Title: title + ":"})
		for _, c := range commands {
			c.GroupID = title
			root.AddCommand(c)
		}
	}
	group("Serve", nodeCommand(), controllerCommand())
	group("Look", lookCommands()...)
	group("Change", importCommand(), adoptCommand(), rollbackCommand())
	group("Cluster", forgetNodeCommand(), orphansCommand())
	root.AddCommand(versionCommand())
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

// buildVersion returns the release, or the version that the Go toolchain has
// recorded.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
