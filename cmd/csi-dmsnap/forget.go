package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/cluster"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// forgetNode has the flags of the command of that name.
type forgetNode struct {
	kubeconfig, output string
	yes                bool
}

func forgetNodeCommand() *cobra.Command {
	var f forgetNode
	cmd := &cobra.Command{
		Use:   "forget-node NODE",
		Short: "Delete what a node that never comes back leaves in Kubernetes",
		Long: `Delete the objects in Kubernetes that stand for the volumes and snapshots of a
node that never comes back: PersistentVolumes, VolumeSnapshotContents (with the
finalizers and annotations that wait for its driver) and CSIStorageCapacities.
Claims and VolumeSnapshots stay: they lose what they are bound to.

Without --yes it only shows what it would delete. It refuses while the node is
Ready. It needs no driver, and touches no disk: should the node come back after
all, its data is there, and "csi-dmsnap orphans" lists it. An Event on
the node tells who did it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			clients, err := clusterClients(f.kubeconfig)
			if err != nil {
				return err
			}
			return f.run(cmd.Context(), cmd.OutOrStdout(), clients, args[0])
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.yes, "yes", false, "delete them")
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "how to reach the Kubernetes API; found as kubectl does if empty")
	addOutputFlag(flags, &f.output)
	return cmd
}

func clusterClients(kubeconfig string) (cluster.Clients, error) {
	config, err := cluster.Config(kubeconfig, "csi-dmsnap/"+buildVersion())
	if err != nil {
		return cluster.Clients{}, err
	}
	k, err := kubernetes.NewForConfig(config)
	if err != nil {
		return cluster.Clients{}, fmt.Errorf("client of the Kubernetes API: %w", err)
	}
	d, err := dynamic.NewForConfig(config)
	if err != nil {
		return cluster.Clients{}, fmt.Errorf("client of the Kubernetes API: %w", err)
	}
	return cluster.Clients{Kubernetes: k, Dynamic: d}, nil
}

// forgotten is an object and what was done with it.
type forgotten struct {
	cluster.Object
	Deleted bool   `json:"deleted"`
	Error   string `json:"error,omitempty"`
}

func (f forgetNode) run(ctx context.Context, w io.Writer, clients cluster.Clients, node string) error {
	if err := checkOutput(f.output); err != nil {
		return err
	}
	if id, is := handle.Parse(node); is {
		return fmt.Errorf("%s is an id, of node %s; nothing was changed: give a node's name, all that is on it is forgotten", node, id.Node)
	}
	there, ready, err := clients.NodeReady(ctx, node)
	if err != nil {
		return err
	}
	if ready {
		return fmt.Errorf("node %s is Ready, so its volumes are there: nothing is forgotten. Delete the claims and VolumeSnapshots instead, or stop the node first", node)
	}
	objects, err := clients.OfNode(ctx, node)
	if err != nil {
		return err
	}
	list := make([]forgotten, len(objects))
	var failed []error
	for i, o := range objects {
		list[i].Object = o
		if !f.yes {
			continue
		}
		if err := clients.Forget(ctx, o); err != nil {
			list[i].Error = err.Error()
			failed = append(failed, err)
			continue
		}
		list[i].Deleted = true
	}
	if f.yes && len(list) > 0 {
		message := fmt.Sprintf("%s deleted what stood for volumes and snapshots of node %s: %d objects, %d could not be deleted", caller(), node, len(list)-len(failed), len(failed))
		if err := clients.Tell(ctx, node, "NodeForgotten", message); err != nil {
			klog.FromContext(ctx).Error(err, "Nobody is told that the node was forgotten", "node", node) // who may delete need not be allowed that
		}
	}
	var text strings.Builder
	if err := printForgotten(&text, list, node, there, f.yes); err != nil {
		return err
	}
	return errors.Join(append(failed, printAs(w, f.output, text.String(), list))...)
}

func printForgotten(w io.Writer, list []forgotten, node string, there, yes bool) error {
	if len(list) == 0 {
		fmt.Fprintf(w, "Nothing in Kubernetes stands for a volume or snapshot on node %s.\n", node)
	} else {
		rows := [][]string{{"KIND", "NAME", "ID", "USED-BY", "DELETED"}}
		for _, o := range list {
			name := o.Name
			if o.Namespace != "" {
				name = o.Namespace + "/" + o.Name
			}
			done := yesNo(o.Deleted)
			if o.Error != "" {
				done = "failed"
			}
			rows = append(rows, []string{o.Kind, name, orDash(o.ID), orDash(o.UsedBy), done})
		}
		if err := table(w, rows...); err != nil {
			return err
		}
		if !yes {
			fmt.Fprint(w, "\nNothing was changed. Give --yes to delete these objects.\n")
		}
	}
	if there {
		fmt.Fprintf(w, "\nThe Node object is still there: delete it too (kubectl delete node %s), or new volumes\nwhose node may be chosen wait for its driver.\n", node)
	}
	return nil
}
