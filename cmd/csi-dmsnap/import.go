package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// importCommand returns the command that imports a logical volume of LVM2's own.
func importCommand() *cobra.Command {
	var i importing
	cmd := &cobra.Command{
		Use:   "import POOL LV",
		Short: "Turn a logical volume without snapshots into a volume",
		Long: `Turn a logical volume of the pool's volume group into a volume of the pool, so
that it can be snapshotted, cloned, expanded and deleted through CSI.

The command only adds tags. The data, the device and the name of the logical volume
stay, and so do the ids of PersistentVolumes that name it. The volume may be in use.
A running driver sees the new volume within seconds.

The logical volume must be linear and writable. It must have no snapshots of LVM2's,
and be no part of an LVM2 pool, cache or RAID. A logical volume with ext4, xfs or
btrfs becomes a file-system volume, and one without a file system a block volume;
--mode block makes a block volume in either case. Nothing is ever formatted.

With --static, the logical volume stays LVM2's own. A tag then allows PersistentVolumes
that are written by hand to name it. Without the tag they may not, because the host's
own logical volumes may lie in the same group. The command refuses a logical volume
that the host uses (it is mounted, swap, below another device, or open for another
reason), and an inner part of LVM2's.`,
		Args: cobra.ExactArgs(2),
		RunE: i.run,
	}
	i.addFlags(cmd)
	flags := cmd.Flags()
	flags.StringVar(&i.config, "config", "/etc/csi-dmsnap/config.yaml", "YAML file that lists the pools")
	flags.StringVar(&i.spec.Name, "name", "", "the volume's CSI name; if empty, the logical volume's name")
	flags.StringVar(&i.mode, "mode", "", "filesystem or block; if empty, the content decides")
	flags.BoolVar(&i.static, "static", false, "leave the logical volume LVM2's own, and let static volumes name it")
	return cmd
}

// importing has the flags of the import command.
type importing struct {
	operator
	spec   pool.ImportSpec
	mode   string
	static bool
}

func (i *importing) run(cmd *cobra.Command, args []string) error {
	i.pool, i.output = args[0], outputTable
	if i.mode != "" && i.mode != string(pool.Filesystem) && i.mode != string(pool.Block) {
		return fmt.Errorf("invalid mode %q: must be %s or %s", i.mode, pool.Filesystem, pool.Block)
	}
	if i.static && (i.spec.Name != "" || i.mode != "") {
		return errors.New("--static leaves the logical volume as it is; drop --name and --mode")
	}
	configs, err := i.pools(cmd.Context())
	if err != nil {
		return err
	}
	i.spec.Probe = func(ctx context.Context, device string) (pool.Mode, string, error) {
		return contentMode(ctx, pool.Mode(i.mode), device)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), lookLimit)
	defer cancel()
	if i.spec.LV, err = i.logical(ctx, args[1], i.pool); err != nil {
		return err
	}
	if i.static {
		if err := pool.AllowStatic(ctx, configs[0], by(), i.spec.LV, notSwap); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "static volumes may now name logical volume %s of pool %s\n", i.spec.LV, args[0])
		return nil
	}
	v, err := pool.Import(ctx, configs[0], by(), i.spec)
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "logical volume %s is now volume %q of pool %s: mode %s", v.LV, v.Name, args[0], v.Mode)
	if v.FSType != "" {
		fmt.Fprintf(cmd.OutOrStdout(), ", %s", v.FSType)
	}
	fmt.Fprintln(cmd.OutOrStdout())
	return nil
}

// notSwap returns an error if the device has the signature of swap, because the
// host may use it.
func notSwap(ctx context.Context, device string) error {
	swap, err := filesystem.IsSwap(ctx, device)
	if err == nil && swap {
		err = fmt.Errorf("%s is swap", device)
	}
	return err
}

// contentMode returns the mode and file system of an imported volume. wanted is the
// mode that the user asks for; if it is "", the content of the device decides.
func contentMode(ctx context.Context, wanted pool.Mode, device string) (pool.Mode, string, error) {
	if wanted == pool.Block {
		return pool.Block, "", nil
	}
	found, err := filesystem.Probe(ctx, device)
	switch {
	case errors.Is(err, filesystem.ErrContent) && wanted == "":
		return pool.Block, "", nil // such as a partition table: it was used as a block device
	case err != nil:
		return "", "", err
	case filesystem.Supported(found):
		return pool.Filesystem, found, nil
	case found == "" && wanted == "":
		return pool.Block, "", nil
	case found == "":
		return "", "", fmt.Errorf("%s has no file system; make a file system first", device)
	}
	return "", "", fmt.Errorf("%s has %s, and only ext4, xfs and btrfs can be mounted; use --mode block", device, found)
}
