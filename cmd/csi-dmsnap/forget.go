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

// forgetNode has the flags of the command forget-node.
type forgetNode struct {
	kubeconfig, output string
	yes                bool
}

func forgetNodeCommand() *cobra.Command {
	var f forgetNode
	cmd := &cobra.Command{
		Use:   "forget-node NODE",
		Short: "Delete the Kubernetes objects of a lost node's volumes and snapshots",
		Long: `Delete the Kubernetes objects of the volumes and snapshots of a node that never
comes back: PersistentVolumes, VolumeSnapshotContents (with the finalizers and
annotations that wait for the node's driver) and CSIStorageCapacities. Claims and
VolumeSnapshots stay, and lose the objects that they are bound to.

Without --yes the command only lists the objects that it would delete. It refuses
while the node is Ready. It needs no driver, and touches no disk: if the node comes
back after all, its data is there, and "csi-dmsnap orphans" lists it. An Event on
the node says who ran the command.`,
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
	flags.BoolVar(&f.yes, "yes", false, "delete the objects")
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig file for the Kubernetes API; if empty, the command finds one as kubectl does")
	addOutputFlag(flags, &f.output, "")
	return cmd
}

// clusterClients connects to the Kubernetes API.
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

// forgotten is an object of the node, and the result of its deletion.
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
		return fmt.Errorf("%s is the id of a volume or snapshot on node %s; nothing was changed; name a node to forget everything on it", node, id.Node)
	}
	there, ready, err := clients.NodeReady(ctx, node)
	if err != nil {
		return err
	}
	if ready {
		return fmt.Errorf("node %s is Ready, so its volumes are there; nothing was changed; delete the claims and VolumeSnapshots instead, or stop the node first", node)
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
		message := fmt.Sprintf("%s deleted %d objects of volumes and snapshots on node %s; %d could not be deleted", caller(), len(list)-len(failed), node, len(failed))
		if err := clients.Tell(ctx, node, "NodeForgotten", message); err != nil {
			// The right to delete the objects need not include the right to create Events.
			klog.FromContext(ctx).Error(err, "No Event says that the node was forgotten", "node", node)
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
		fmt.Fprintf(w, "Kubernetes has no objects of volumes or snapshots on node %s.\n", node)
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
		if err := writeTable(w, rows...); err != nil {
			return err
		}
		if !yes {
			fmt.Fprint(w, "\nNothing was changed. Use --yes to delete these objects.\n")
		}
	}
	if there {
		fmt.Fprintf(w, "\nThe Node object is still there. Delete it too (kubectl delete node %s); otherwise new volumes\nthat may be placed on any node wait for its driver.\n", node)
	}
	return nil
}
