// Command e2e runs a real Kubernetes on one machine, and tests the driver on
// it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/build"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/cluster"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/install"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "e2e",
		Short:         "A real Kubernetes on one machine, and the driver's tests on it",
		SilenceUsage:  true,
		SilenceErrors: true, // main prints the errors
	}
	root.AddCommand(buildCommand(), upCommand(), downCommand(), kubectlCommand(), execCommand(), installCommand(), testCommand())
	root.AddCommand(daemonCommand(), nodeCommand(), importCommand())
	return root
}

// clusterFlag adds the flag for the cluster's directory.
func clusterFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", "out/e2e/cluster", "directory of the cluster")
}

func buildCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Compile everything in advance, which takes long",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root, err := repository()
			if err != nil {
				return err
			}
			set, err := build.Programs(cmd.Context(), filepath.Join(root, "test", "e2e"), true, os.Stderr)
			if err == nil {
				fmt.Println(set.Dir)
			}
			return err
		},
	}
}

func upCommand() *cobra.Command {
	var o cluster.Options
	var driver bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a cluster and leave it running",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := up(cmd.Context(), &o)
			if err != nil {
				return err
			}
			if driver {
				if err := install.Install(cmd.Context(), c, o.Root); err != nil {
					return err
				}
			}
			fmt.Printf("\nThe cluster is running. To stop it, run: make cluster-down\n\nexport KUBECONFIG=%s\nexport PATH=%s:$PATH\n",
				c.Kubeconfig(), c.Programs)
			return nil
		},
	}
	upFlags(cmd, &o)
	cmd.Flags().BoolVar(&driver, "driver", false, "install the driver")
	return cmd
}

func upFlags(cmd *cobra.Command, o *cluster.Options) {
	clusterFlag(cmd, &o.Dir)
	cmd.Flags().IntVar(&o.Nodes, "nodes", 2, "number of nodes")
	cmd.Flags().StringVar(&o.Memory, "memory", "2560M", "memory of each node")
}

func up(ctx context.Context, o *cluster.Options) (*cluster.Client, error) {
	var err error
	if o.Root, err = repository(); err != nil {
		return nil, err
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	return cluster.Up(ctx, *o, os.Stderr)
}

// repository returns the root of the repository that contains the working
// directory.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "hack", "testkernel")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("the working directory is not in the repository of csi-dmsnap")
}

func downCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop and delete a cluster",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cluster.Down(cmd.Context(), dir)
		},
	}
	clusterFlag(cmd, &dir)
	return cmd
}

func kubectlCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "kubectl -- ARG...",
		Short: "Run kubectl for the cluster",
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := cluster.LoadConfig(dir)
			if err != nil {
				return err
			}
			kubectl := c.Kubectl().Program
			env := append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
			return syscall.Exec(kubectl, append([]string{"kubectl"}, args...), env)
		},
	}
	clusterFlag(cmd, &dir)
	return cmd
}

func execCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "exec NODE -- COMMAND [ARG...]",
		Short: "Run a command on a node",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cluster.Connect(dir)
			if err != nil {
				return err
			}
			r, err := c.Run(cmd.Context(), args[0], args[1:]...)
			if err != nil {
				return err
			}
			fmt.Print(r.Stdout)
			fmt.Fprint(os.Stderr, r.Stderr)
			if r.Code != 0 {
				return fmt.Errorf("exit status %d", r.Code)
			}
			return nil
		},
	}
	clusterFlag(cmd, &dir)
	return cmd
}
