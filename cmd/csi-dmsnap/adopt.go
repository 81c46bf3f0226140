package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// adoptCommand returns the command that adopts a logical volume with its snapshots.
func adoptCommand() *cobra.Command {
	var o operator
	var name, fsType string
	var block bool
	c := &cobra.Command{
		Use: "adopt POOL LV", Short: "Turn a logical volume and LVM2's snapshots of it into a volume and snapshots", Args: cobra.ExactArgs(2),
		Long: `Turn a linear logical volume into a volume of the pool on its volume group, and
the snapshots that LVM2 took of it into the volume's snapshots. They can then be
used and deleted through CSI.

Nothing is copied. The volume may be in use, and the driver may be running. The
snapshots become read-only: unmount a snapshot that is mounted for writing first.

From then on the kernel copies an overwritten block once, however many snapshots
there are: they all read through one new layer. Its store has the pool's usual size.`,
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
	c.Flags().StringVar(&name, "name", "", "the volume's CSI name; if empty, the logical volume's name")
	c.Flags().StringVar(&fsType, "fs-type", "", "file system on the volume: ext4, xfs or btrfs")
	c.Flags().BoolVar(&block, "block", false, "the volume is a raw block volume")
	c.MarkFlagsOneRequired("fs-type", "block")
	c.MarkFlagsMutuallyExclusive("fs-type", "block")
	return c
}
