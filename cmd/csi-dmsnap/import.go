package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// importCommand makes logical volumes of LVM2's own volumes.
func importCommand() *cobra.Command {
	var i importing
	cmd := &cobra.Command{
		Use:   "import POOL LV",
		Short: "Make a logical volume that LVM2 made a volume of the pool",
		Long: `Make an existing logical volume of the pool's volume group a volume of the
pool, so that it can be snapshotted, cloned, expanded and deleted through CSI.
Only tags are added to it: its data, its device and its name stay, it may be in
use, and ids of persistent volumes that name it stay valid. The driver may run or
not; one that runs sees it within seconds.

The logical volume must be linear, writable and in no other use by LVM2: it has
no snapshots of LVM2's and is no part of a pool, a cache or a RAID. One with an
ext4, xfs or btrfs becomes a file-system volume, one without a file system a block
volume; --mode block makes a block volume of either. Nothing is ever formatted.

With --static it stays LVM2's own, and a PersistentVolume written by hand may name
it: a tag says so, without which none may, for the host's own logical volumes may
lie in the same group. One that the host uses is refused: it is mounted, swap, below
another device or open otherwise, or an inner part of LVM2's.`,
		Args: cobra.ExactArgs(2),
		RunE: i.run,
	}
	i.addFlags(cmd)
	flags := cmd.Flags()
	flags.StringVar(&i.config, "config", "/etc/csi-dmsnap/config.yaml", "YAML file that lists the pools")
	flags.StringVar(&i.spec.Name, "name", "", "the volume's name in CSI; the logical volume's if not given")
	flags.StringVar(&i.mode, "mode", "", "filesystem or block; by what is on it if not given")
	flags.BoolVar(&i.static, "static", false, "leave it LVM2's own and let static volumes name it")
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
		return fmt.Errorf("mode %q: %s and %s are possible", i.mode, pool.Filesystem, pool.Block)
	}
	if i.static && (i.spec.Name != "" || i.mode != "") {
		return errors.New("--static goes without --name and --mode: the logical volume stays as it is")
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
		fmt.Fprintf(cmd.OutOrStdout(), "a static volume may name logical volume %s of pool %s\n", i.spec.LV, args[0])
		return nil
	}
	v, err := pool.Import(ctx, configs[0], by(), i.spec)
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "logical volume %s is the volume %q of pool %s: mode %s", v.LV, v.Name, args[0], v.Mode)
	if v.FSType != "" {
		fmt.Fprintf(cmd.OutOrStdout(), ", %s", v.FSType)
	}
	fmt.Fprintln(cmd.OutOrStdout())
	return nil
}

// notSwap refuses a device that the host may use as swap.
func notSwap(ctx context.Context, device string) error {
	swap, err := filesystem.IsSwap(ctx, device)
	if err == nil && swap {
		err = fmt.Errorf("%s is swap", device)
	}
	return err
}

// contentMode decides how a device is used that has been in use before. wanted
// is a mode, or "" where the content decides.
func contentMode(ctx context.Context, wanted pool.Mode, device string) (pool.Mode, string, error) {
	if wanted == pool.Block {
		return pool.Block, "", nil
	}
	found, err := filesystem.Probe(ctx, device)
	switch {
	case errors.Is(err, filesystem.ErrContent) && wanted == "":
		return pool.Block, "", nil // such as a partition table: what uses it as a block device made that
	case err != nil:
		return "", "", err
	case filesystem.Supported(found):
		return pool.Filesystem, found, nil
	case found == "" && wanted == "":
		return pool.Block, "", nil
	case found == "":
		return "", "", fmt.Errorf("%s has no file system: make one on it first", device)
	}
	return "", "", fmt.Errorf("%s has %s; ext4, xfs and btrfs can be mounted: import it with --mode block", device, found)
}
