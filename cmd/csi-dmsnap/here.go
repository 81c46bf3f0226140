package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/internal/sockets"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/driver"
)

// Variables that the driver's pod sets for the commands that run in it.
const (
	nodeVariable     = "NODE_NAME"
	endpointVariable = "CSI_ENDPOINT"
)

const defaultEndpoint = "unix:///var/lib/kubelet/plugins/" + driver.Name + "/csi.sock"

// answerLimit is how long the running driver has for an answer.
const answerLimit = 5 * time.Second

// here has the flags of the commands that must know on which node they run, or ask
// the driver that runs there.
type here struct {
	nodeName, endpoint string
}

func (h *here) addFlags(c *cobra.Command) {
	c.Flags().StringVar(&h.nodeName, "node-name", os.Getenv(nodeVariable), "name of this node in the cluster; asked of the running driver if empty")
	c.Flags().StringVar(&h.endpoint, "endpoint", cmp.Or(os.Getenv(endpointVariable), defaultEndpoint), "socket of the driver that runs on this node")
}

// driver connects to the driver that runs on this node, when it is asked something.
func (h *here) driver() (*grpc.ClientConn, error) {
	path, err := sockets.Path(h.endpoint)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// node returns the short form of this node's name.
func (h *here) node(ctx context.Context) (string, error) {
	name, err := h.fullName(ctx)
	if err != nil {
		return "", err
	}
	return handle.ShortNode(name), nil
}

// fullName returns this node's name in the cluster.
func (h *here) fullName(ctx context.Context) (string, error) {
	if h.nodeName != "" {
		return h.nodeName, nil
	}
	conn, err := h.driver()
	if err != nil {
		return "", err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	info, err := csi.NewNodeClient(conn).NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	if err != nil {
		return "", fmt.Errorf("the driver does not answer at %s: %w; give the node's name with --node-name", h.endpoint, err)
	}
	return info.GetNodeId(), nil
}

// named is what an argument names: something of any pool by its name, or of one pool by
// its logical volume.
type named struct {
	name string
	pool string // "" if it is not given by id
}

// resolve reads an argument of a command, which may be a CSI id. One of another node
// names nothing here, though this node may have a logical volume of that name; neither
// does one of another pool than in, unless that is "".
func (h *here) resolve(ctx context.Context, arg, in string) (named, error) {
	id, is := handle.Parse(arg)
	if !is {
		if strings.HasPrefix(arg, "v1:") {
			return named{}, fmt.Errorf("%q is not an id of this driver; nothing was changed", arg)
		}
		return named{name: arg}, nil
	}
	node, err := h.node(ctx)
	if err != nil {
		return named{}, fmt.Errorf("whether %s is on this node is not known, nothing was changed: %w", arg, err)
	}
	if id.Node != node {
		return named{}, fmt.Errorf("%s is on node %s, this is node %s; nothing was changed: run the command on that node", arg, id.Node, node)
	}
	if in != "" && id.Pool != in {
		return named{}, fmt.Errorf("%s is in pool %s, not in pool %s; nothing was changed", arg, id.Pool, in)
	}
	return named{name: id.LV, pool: id.Pool}, nil
}

// logical resolves the argument of a command for one pool that takes a logical volume.
func (h *here) logical(ctx context.Context, arg, in string) (string, error) {
	n, err := h.resolve(ctx, arg, in)
	return n.name, err
}

// matches says whether something is what an argument names. By an id only its logical
// volume counts.
func (n named) matches(in, name, lv string) bool {
	if n.pool != "" {
		return n.pool == in && n.name == lv
	}
	return n.name != "" && (n.name == name || n.name == lv)
}

// volume finds what an argument names among the volumes.
func (n named) volume(found []*pool.Inspection) (pool.VolumeState, error) {
	matches := slices.DeleteFunc(volumesOf(found), func(v pool.VolumeState) bool { return !n.matches(v.Pool, v.Name, v.LV) })
	switch len(matches) {
	case 0:
		return pool.VolumeState{}, fmt.Errorf("no volume %q in the pools looked at", n.name)
	case 1:
		return matches[0], nil
	}
	return pool.VolumeState{}, fmt.Errorf("several volumes %q: give --pool, or the name of the logical volume", n.name)
}

// snapshot finds what an argument names among the snapshots of a pool.
func (n named) snapshot(found []*pool.Inspection, in string) (pool.LayerState, error) {
	var matches []pool.LayerState
	for _, v := range volumesOf(found) {
		for _, l := range v.Layers {
			if v.Pool == in && l.Name != "" && n.matches(in, l.Name, l.LV) {
				matches = append(matches, l)
			}
		}
	}
	switch len(matches) {
	case 0:
		return pool.LayerState{}, fmt.Errorf("no snapshot %q in pool %s", n.name, in)
	case 1:
		return matches[0], nil
	}
	return pool.LayerState{}, fmt.Errorf("several snapshots %q in pool %s: give its id", n.name, in)
}

// caller says who runs the command and where, as far as the machine knows. Of kubectl
// exec it knows no name: the cluster's audit log does.
func caller() string {
	who := fmt.Sprintf("uid %d", os.Getuid())
	if u, err := user.Current(); err == nil {
		who = fmt.Sprintf("%s (uid %s)", u.Username, u.Uid)
	}
	if sudo := os.Getenv("SUDO_USER"); sudo != "" {
		who += fmt.Sprintf(" for %s (uid %s)", sudo, os.Getenv("SUDO_UID"))
	}
	host, err := os.Hostname()
	if err != nil {
		return who
	}
	return who + " on " + host
}

// by are the options of what changes a pool.
func by() pool.Options { return pool.Options{By: caller()} }
