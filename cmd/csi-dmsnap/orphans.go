package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/cluster"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/sockets"
)

// orphans has the flags of the command orphans.
type orphans struct {
	kubeconfig, output, endpoint string
	settle                       time.Duration
}

func orphansCommand() *cobra.Command {
	var o orphans
	cmd := &cobra.Command{
		Use:   "orphans",
		Short: "List volumes and snapshots that only the disks or only Kubernetes know",
		Long: `List volumes and snapshots on the nodes' disks that have no object in Kubernetes,
and objects in Kubernetes whose volume or snapshot is on no disk. The command asks
all nodes through the controller, so run it in the controller's pod:

  kubectl exec -n csi-dmsnap deploy/csi-dmsnap-controller -c csi-dmsnap -- csi-dmsnap orphans

The command deletes nothing. It looks twice, to leave out volumes and snapshots that
are just being created or deleted. If a node does not answer, the list lacks the
orphans of that node: the command says so, and exits with 1.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			clients, err := clusterClients(o.kubeconfig)
			if err != nil {
				return err
			}
			return o.run(cmd.Context(), cmd.OutOrStdout(), clients)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.endpoint, "endpoint", "unix:///csi/csi.sock", "socket of the controller")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file for the Kubernetes API; if empty, the command finds one as kubectl does")
	addOutputFlag(flags, &o.output, "")
	flags.DurationVar(&o.settle, "settle", 10*time.Second, "how long to wait between the two looks")
	return cmd
}

// orphan is a volume or snapshot that only the disks or only Kubernetes know.
type orphan struct {
	Kind   string `json:"kind"` // volume or snapshot
	Node   string `json:"node"` // short name
	ID     string `json:"id"`
	Object string `json:"object,omitempty"` // its object in Kubernetes; "" if only the disk knows it
	UsedBy string `json:"usedBy,omitempty"`
	Why    string `json:"why"`
}

// survey is the result of one look at all nodes and at Kubernetes.
type survey struct {
	Orphans []orphan `json:"orphans"`
	Silent  []string `json:"nodesThatDoNotAnswer,omitempty"`
}

func (o orphans) run(ctx context.Context, w io.Writer, clients cluster.Clients) error {
	if err := checkOutput(o.output); err != nil {
		return err
	}
	path, err := sockets.Path(o.endpoint)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("connect to the controller at %s: %w", o.endpoint, err)
	}
	defer conn.Close()
	found, err := compareAll(ctx, csi.NewControllerClient(conn), clients)
	if err != nil {
		return err
	}
	if len(found.Orphans) > 0 {
		select {
		case <-time.After(o.settle):
		case <-ctx.Done():
			return ctx.Err()
		}
		again, err := compareAll(ctx, csi.NewControllerClient(conn), clients)
		if err != nil {
			return err
		}
		again.Orphans = slices.DeleteFunc(again.Orphans, func(x orphan) bool { return !slices.Contains(found.Orphans, x) })
		found = again
	}
	var text strings.Builder
	if err := printOrphans(&text, found); err != nil {
		return err
	}
	if err := printAs(w, o.output, text.String(), found); err != nil {
		return err
	}
	if len(found.Silent) > 0 {
		return fmt.Errorf("the list is incomplete: no answer from node %s", strings.Join(found.Silent, ", node "))
	}
	return nil
}

// compareAll compares the volumes and snapshots on all nodes with the objects in
// Kubernetes.
func compareAll(ctx context.Context, nodes csi.ControllerClient, clients cluster.Clients) (survey, error) {
	var trailer1, trailer2 metadata.MD
	volumes, err := nodes.ListVolumes(ctx, &csi.ListVolumesRequest{}, grpc.Trailer(&trailer1), grpc.MaxCallRecvMsgSize(maxList))
	if err != nil {
		return survey{}, fmt.Errorf("list the volumes of all nodes: %w", err)
	}
	snapshots, err := nodes.ListSnapshots(ctx, &csi.ListSnapshotsRequest{}, grpc.Trailer(&trailer2), grpc.MaxCallRecvMsgSize(maxList))
	if err != nil {
		return survey{}, fmt.Errorf("list the snapshots of all nodes: %w", err)
	}
	volumeObjects, err := clients.Volumes(ctx)
	if err != nil {
		return survey{}, err
	}
	contents, cut, err := clients.Snapshots(ctx)
	if err != nil {
		return survey{}, err
	}
	known, err := clients.ShortNames(ctx)
	if err != nil {
		return survey{}, err
	}
	found := survey{Silent: append(trailer1.Get(callmeta.PartialKey), trailer2.Get(callmeta.PartialKey)...)}
	c := comparison{known: known, silent: map[string]bool{}}
	for _, n := range found.Silent {
		c.silent[handle.ShortNode(n)] = true
	}
	var ids []string
	for _, e := range volumes.GetEntries() {
		ids = append(ids, e.GetVolume().GetVolumeId())
	}
	list := c.orphans(kindVolume, ids, volumeObjects)
	ids = nil
	for _, e := range snapshots.GetEntries() {
		ids = append(ids, e.GetSnapshot().GetSnapshotId())
	}
	contents = slices.DeleteFunc(contents, func(o cluster.Object) bool { return !cut[o.Name] })
	list = append(list, c.orphans(kindSnapshot, ids, contents)...)
	if found.Orphans, err = found.unlisted(ctx, nodes, list); err != nil {
		return survey{}, err
	}
	slices.Sort(found.Silent)
	found.Silent = slices.Compact(found.Silent)
	return found, nil
}

// unlisted asks the nodes for the objects in the list, and returns the orphans that
// their nodes do not have. Lists lack static volumes, because LVM2 made them. A node
// that has not yet seen that it lacks an optional pool finds out when it is asked.
func (s *survey) unlisted(ctx context.Context, nodes csi.ControllerClient, list []orphan) ([]orphan, error) {
	left := []orphan{}
	for _, o := range list {
		if o.Why != notOnNode {
			left = append(left, o)
			continue
		}
		there, err := o.there(ctx, nodes)
		switch {
		case status.Code(err) == codes.Unavailable:
			s.Silent = append(s.Silent, o.Node)
		case err != nil:
			return nil, fmt.Errorf("ask node %s for %s %s: %w", o.Node, o.Kind, o.ID, err)
		case !there:
			left = append(left, o)
		}
	}
	return left, nil
}

// there reports whether the orphan's node has the volume or snapshot.
func (o orphan) there(ctx context.Context, nodes csi.ControllerClient) (bool, error) {
	if o.Kind == kindSnapshot {
		a, err := nodes.ListSnapshots(ctx, &csi.ListSnapshotsRequest{SnapshotId: o.ID})
		return len(a.GetEntries()) > 0, err
	}
	_, err := nodes.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: o.ID})
	if status.Code(err) == codes.NotFound {
		return false, nil
	}
	return err == nil, err
}

// The kinds of orphans.
const (
	kindVolume   = "volume"
	kindSnapshot = "snapshot"
)

// notOnNode is the reason of an orphan whose node answers.
const notOnNode = "not on the node"

// maxList limits an answer, in bytes. It is enough for the volumes of a hundred
// full nodes.
const maxList = 1 << 30

// comparison knows the nodes by their short names.
type comparison struct {
	known  map[string]bool // in Kubernetes
	silent map[string]bool // did not answer
}

// orphans returns the ids on disks that no object has, and then the objects whose
// ids are on no disk.
func (c comparison) orphans(kind string, ids []string, objects []cluster.Object) (list []orphan) {
	onDisk, named := map[string]bool{}, map[string]bool{}
	for _, id := range ids {
		onDisk[id] = true
	}
	for _, o := range objects {
		named[o.ID] = true
	}
	for _, id := range ids {
		if !named[id] {
			i, _ := handle.Parse(id)
			list = append(list, orphan{Kind: kind, Node: i.Node, ID: id, Why: "no object in Kubernetes"})
		}
	}
	for _, o := range objects {
		i, ours := handle.Parse(o.ID)
		if onDisk[o.ID] || c.silent[i.Node] {
			continue
		}
		why := notOnNode
		switch {
		case !ours:
			why = "not an id of this driver"
		case !c.known[i.Node]:
			why = "the node is not in the cluster"
		}
		list = append(list, orphan{Kind: kind, Node: i.Node, ID: o.ID, Object: o.Name, UsedBy: o.UsedBy, Why: why})
	}
	return list
}

func printOrphans(w io.Writer, s survey) error {
	if len(s.Orphans) == 0 {
		fmt.Fprintln(w, "No orphans.")
		return nil
	}
	rows := [][]string{{"KIND", "NODE", "ID", "OBJECT", "USED-BY", "WHY"}}
	for _, o := range s.Orphans {
		rows = append(rows, []string{o.Kind, orDash(o.Node), o.ID, orDash(o.Object), orDash(o.UsedBy), o.Why})
	}
	return writeTable(w, rows...)
}
