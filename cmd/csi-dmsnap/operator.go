package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// operator has the flags of the commands that read or change the pools of a node.
type operator struct {
	here
	config, pool, output string
	plan                 bool // tree prints the plan instead of the devices
}

// lookLimit limits how long a command waits for LVM2's lock. LVM2's own commands
// hold the lock while they change the group.
const lookLimit = 30 * time.Second

const snapshotsHelp = `List the layers of the volumes' histories, the newest of each volume first.

The state of a layer is one of:
  live    the kernel copies blocks into it before they are overwritten
  frozen  it is read through the newer layers
  inner   its snapshot was deleted, but older snapshots or a copy still need it
  lost    its content is gone
  lvm2    it is a snapshot that LVM2 made
The position counts from the newest layer.`

const treeHelp = `Draw the history of a volume, and its devices in the kernel. VOLUME is the name
of the volume, the name of its logical volume, or its CSI id.

With --plan, print instead what a driver that starts now would do to the devices
of the volume's family: the volume, the volumes that it reads through, and the
volumes that read through it. The plan is empty if the devices match the metadata.
It lacks what a running driver does beyond that, such as holding writers.`

const checkHelp = `Check that the metadata is consistent, that the devices in the kernel match the
metadata, and that the active stores of the snapshots can be read. The findings
include everything that health calls and Events report.

Only a running driver knows some of this, such as why a copy fails. The command
asks the driver at its socket, and says so if the driver does not answer.

The exit code is 0 if all is well, and 1 if problems were found. It is 2 if the
command fails, or if it finds no problems but volumes are mounted and the driver
does not answer.`

const lookHelp = `

The command reads the disks and device-mapper directly, and changes nothing. The
driver may be running: the command holds only LVM2's shared lock, and only while
it reads the metadata.`

// lookCommands returns the commands that show pools and change nothing.
func lookCommands() []*cobra.Command {
	var o operator
	commands := []*cobra.Command{
		{
			Use: "pools", Short: "List the pools, and where their space is", Args: cobra.NoArgs,
			RunE: o.list(listPools),
		},
		{
			Use: "volumes", Short: "List the volumes", Args: cobra.NoArgs,
			RunE: o.list(listVolumes),
		},
		{
			Use: "snapshots", Short: "List the snapshots, and the other layers of the volumes' histories", Args: cobra.NoArgs,
			Long: snapshotsHelp,
			RunE: o.list(listSnapshots),
		},
		{
			Use: "tree VOLUME", Short: "Draw a volume's history, and its devices in the kernel", Args: cobra.ExactArgs(1),
			Long: treeHelp,
			RunE: o.tree,
		},
		{
			Use: checkCommandName, Short: "Check the pools: metadata, devices, stores and health", Args: cobra.NoArgs,
			Long: checkHelp,
			RunE: o.check,
		},
	}
	for _, c := range commands {
		if c.Long == "" {
			c.Long = c.Short + "."
		}
		c.Long += lookHelp
		o.commonFlags(c)
		c.Flags().StringVar(&o.pool, "pool", "", "look only at this pool")
		if c.Name() == "tree" {
			c.Flags().BoolVar(&o.plan, "plan", false, "print what a starting driver would do to the devices")
		}
	}
	return commands
}

func listPools(w io.Writer, found []*pool.Inspection) (any, error) {
	states := []pool.PoolState{}
	for _, i := range found {
		states = append(states, i.PoolState)
	}
	return states, printPools(w, found)
}

func listVolumes(w io.Writer, found []*pool.Inspection) (any, error) {
	all := volumesOf(found)
	return all, printVolumes(w, all)
}

func listSnapshots(w io.Writer, found []*pool.Inspection) (any, error) {
	all := []pool.LayerState{}
	for _, v := range volumesOf(found) {
		all = append(all, v.Layers...)
	}
	return all, printSnapshots(w, all)
}

// tree draws the volume that args name.
func (o *operator) tree(cmd *cobra.Command, args []string) error {
	n, err := o.resolve(cmd.Context(), args[0], o.pool)
	if err != nil {
		return err
	}
	if n.pool != "" {
		o.pool = n.pool
	}
	return o.list(func(w io.Writer, found []*pool.Inspection) (any, error) {
		v, err := n.volume(found)
		if err != nil {
			return nil, err
		}
		if o.plan {
			return v.Plan, printPlan(w, v)
		}
		return v, printTree(w, v)
	})(cmd, args)
}

func (o *operator) commonFlags(c *cobra.Command) {
	c.Flags().StringVar(&o.config, "config", "/etc/csi-dmsnap/config.yaml", "YAML file that lists the pools")
	addOutputFlag(c.Flags(), &o.output, "; only table rounds lengths, the others give bytes")
	o.addFlags(c)
}

// pools returns the configurations of this node's pools: of one pool if --pool
// names it.
func (o *operator) pools(ctx context.Context) ([]pool.Config, error) {
	if err := checkOutput(o.output); err != nil {
		return nil, err
	}
	configs, err := readConfig(o.config)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(configs, func(c pool.Config) bool { return len(c.Nodes) > 0 }) {
		node, err := o.fullName(ctx)
		if err != nil {
			return nil, err
		}
		configs = poolsOn(node, configs)
	}
	if o.pool == "" {
		return configs, nil
	}
	var names []string
	for _, c := range configs {
		if c.Name == o.pool {
			return []pool.Config{c}, nil
		}
		names = append(names, c.Name)
	}
	return nil, fmt.Errorf("configuration %s has no pool %q; it has %s", o.config, o.pool, strings.Join(names, ", "))
}

// list returns a command's run function that inspects the pools and prints them.
// render prints a table and returns the same data for programs. A pool that
// cannot be read does not keep list from showing the others.
func (o *operator) list(render func(w io.Writer, found []*pool.Inspection) (any, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		configs, err := o.pools(cmd.Context())
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), lookLimit)
		defer cancel()
		var found []*pool.Inspection
		var failed []error
		for _, c := range configs {
			i, err := pool.Inspect(ctx, c, pool.Options{})
			if err != nil && pool.Absent(ctx, c, pool.Options{}) {
				fmt.Fprintln(cmd.ErrOrStderr(), absentLine(c.Name))
				continue
			}
			if err != nil {
				failed = append(failed, err)
				continue
			}
			found = append(found, i)
		}
		if len(found) == 0 && len(failed) > 0 {
			return errors.Join(failed...)
		}
		var table strings.Builder
		data, err := render(&table, found)
		if err == nil {
			err = printAs(cmd.OutOrStdout(), o.output, table.String(), data)
		}
		return errors.Join(append(failed, err)...)
	}
}

// absentLine returns the message about an optional pool that this node lacks.
func absentLine(name string) string {
	return fmt.Sprintf("pool %s: optional, and not on this node", name)
}

// volumesOf returns the volumes of all pools.
func volumesOf(found []*pool.Inspection) []pool.VolumeState {
	all := []pool.VolumeState{}
	for _, i := range found {
		all = append(all, i.Volumes...)
	}
	return all
}
