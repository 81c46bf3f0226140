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

// operator has the flags of the commands that look at pools.
type operator struct {
	here
	config, pool, output string
	plan                 bool // what would be done, instead of what is there
}

// lookLimit is how long a command waits for LVM2's lock, which commands of
// LVM2 hold for the length of a change.
const lookLimit = 30 * time.Second

const operatorHelp = `

It reads the disks and device-mapper directly and changes nothing. The driver
may run or not: only LVM2's shared lock is held while the metadata is read.`

// operatorCommands are the commands for people who look after pools.
func operatorCommands() []*cobra.Command {
	var o operator
	commands := []*cobra.Command{
		{
			Use: "pools", Short: "List the pools and where their space is", Args: cobra.NoArgs,
			RunE: o.list(listPools),
		},
		{
			Use: "volumes", Short: "List the volumes", Args: cobra.NoArgs,
			RunE: o.list(listVolumes),
		},
		{
			Use: "snapshots", Short: "List the snapshots and what else is in the volumes' histories", Args: cobra.NoArgs,
			Long: `List the layers of the volumes' histories, the newest of each volume first.

A layer is live (the kernel copies into it what is about to be overwritten),
frozen (it reads through the newer ones), inner (its snapshot was deleted, older
ones or a copy need it still), lost (its content is gone), or LVM2's own. Its
position counts from the newest.`,
			RunE: o.list(listSnapshots),
		},
		{
			Use: "tree VOLUME", Short: "Draw a volume's history and its devices", Args: cobra.ExactArgs(1),
			Long: `Draw the history of a volume, given by its name, its logical volume's or its CSI
id, and its devices in the kernel. With --plan print instead what a driver that
starts now would do to the devices of the volume, of what it reads through and of
what reads through it: nothing if they are what the metadata calls for. What a
running driver does with devices beyond that, such as to hold back writers, is
not known to this command.`,
			RunE: o.tree,
		},
		{
			Use: checkName, Short: "Check the pools' metadata against device-mapper and the snapshots' stores", Args: cobra.NoArgs,
			Long: `Check that the metadata makes sense, that the devices in the kernel are what it
says, and that the snapshots' stores that are active can be read. All that health
calls and events tell is a finding too. Some of that only the driver that runs on
the node knows, such as why a copy fails: it is asked at its socket, and if it does
not answer that is said. The exit code is 0 if all is well, 1 if something was
found, 2 if it could not look: also where volumes are mounted and the driver does
not answer.`,
			RunE: o.check,
		},
	}
	for _, c := range commands {
		if c.Long == "" {
			c.Long = c.Short + "."
		}
		c.Long += operatorHelp
		o.commonFlags(c)
		c.Flags().StringVar(&o.pool, "pool", "", "only this pool")
		if c.Name() == "tree" {
			c.Flags().BoolVar(&o.plan, "plan", false, "print what a driver that starts would do to the devices")
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

// tree draws one volume, which args name.
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
	addOutputFlag(c.Flags(), &o.output)
	o.addFlags(c)
}

// pools returns the configurations of the pools to look at.
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
	return nil, fmt.Errorf("configuration %s has no pool %q, it has %s", o.config, o.pool, strings.Join(names, ", "))
}

// list runs a command that shows what is there. render prints a table and
// returns the same for programs. Pools that cannot be read do not keep the
// others from being shown.
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

// absentLine says that a pool is not there and need not be.
func absentLine(name string) string {
	return fmt.Sprintf("pool %s: optional, and not on this node", name)
}

func volumesOf(found []*pool.Inspection) []pool.VolumeState {
	all := []pool.VolumeState{}
	for _, i := range found {
		all = append(all, i.Volumes...)
	}
	return all
}
