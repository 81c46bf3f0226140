package main

import (
	"github.com/spf13/cobra"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/cluster"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/node"
)

// The program starts itself with these commands: as the cluster's daemon, and
// as the first program of a machine.

func daemonCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "daemon DIR",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(cmd *cobra.Command, args []string) error { return cluster.Serve(cmd.Context(), args[0]) },
	}
}

func nodeCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "node DIR",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := node.Load(args[0])
			if err != nil {
				return err
			}
			return node.Run(cmd.Context(), c)
		},
	}
}

func importCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "import PROGRAMS ARCHIVE...",
		Hidden: true,
		Args:   cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return node.Import(cmd.Context(), args[0], args[1:])
		},
	}
}
