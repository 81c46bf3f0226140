package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// adoptCommand makes what LVM2 made the pool's.
func adoptCommand() *cobra.Command {
	var o operator
	var name, fsType string
	var block bool
	c := &cobra.Command{
		Use: "adopt POOL LV", Short: "Make a logical volume and LVM2's snapshots of it a volume and snapshots of a pool", Args: cobra.ExactArgs(2),
		Long: `Make a linear logical volume a volume of the pool on its volume group, and the snapshots that LVM2 took
of it the volume's snapshots, which can then be used and deleted through CSI.
Nothing is copied; the volume may be in use, and the driver may run. Snapshots
become read-only: one that may be written to must be unmounted first.

From then on an overwrite is copied once, however many snapshots there are: all
of them read through one new layer, which gets a store of the pool's usual size.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.pool = args[0]
			configs, err := o.pools(cmd.Context())
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), lookLimit)
			defer cancel()
			lv, err := o.logical(ctx, args[1], o.pool)
			if err != nil {
				return err
			}
			a := pool.Adoption{LV: lv, Name: name, Mode: pool.Filesystem, FSType: fsType}
			if block {
				a.Mode = pool.Block
			}
			if err := pool.Adopt(ctx, configs[0], by(), a); err != nil {
				return err
			}
			return o.list(func(w io.Writer, found []*pool.Inspection) (any, error) {
				v, err := named{name: lv, pool: o.pool}.volume(found)
				if err != nil {
					return nil, err
				}
				return v, printTree(w, v)
			})(cmd, args)
		},
	}
	o.commonFlags(c)
	c.Flags().StringVar(&name, "name", "", "the volume's CSI name (default: the logical volume's)")
	c.Flags().StringVar(&fsType, "fs-type", "", "file system that the volume has: ext4, xfs or btrfs")
	c.Flags().BoolVar(&block, "block", false, "it is a raw block volume")
	c.MarkFlagsOneRequired("fs-type", "block")
	c.MarkFlagsMutuallyExclusive("fs-type", "block")
	return c
}
