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

// Environment variables that the driver's pod sets for the commands in it.
const (
	nodeVariable     = "NODE_NAME"
	endpointVariable = "CSI_ENDPOINT"
)

const defaultEndpoint = "unix:///var/lib/kubelet/plugins/" + driver.Name + "/csi.sock"

// answerLimit limits how long a command waits for the running driver's answer.
const answerLimit = 5 * time.Second

// here has the flags of the commands that need this node's name, or ask the driver
// that runs on this node.
type here struct {
	nodeName, endpoint string
}

func (h *here) addFlags(c *cobra.Command) {
	c.Flags().StringVar(&h.nodeName, "node-name", os.Getenv(nodeVariable), "name of this node in the cluster; if empty, the command asks the running driver")
	c.Flags().StringVar(&h.endpoint, "endpoint", cmp.Or(os.Getenv(endpointVariable), defaultEndpoint), "socket of the driver on this node")
}

// driver returns a connection to the driver on this node. It connects at the first
// call. The caller closes it.
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
		return "", fmt.Errorf("the driver does not answer at %s: %w; use --node-name to name the node", h.endpoint, err)
	}
	return info.GetNodeId(), nil
}

// named is a volume or snapshot that an argument names: by its name or logical
// volume, in any pool; or by its id, which names the pool and the logical volume.
type named struct {
	name string
	pool string // "" if the argument is not an id
}

// resolve reads an argument of a command, which may be a CSI id. in is the pool
// that the argument must be in, or "".
//
// Errors: the id is not an id of this driver, is of another node or pool, or this
// node's name is not known. This node may have a logical volume of the same name,
// so resolve never falls back to the name.
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
		return named{}, fmt.Errorf("cannot tell whether %s is on this node: %w; nothing was changed", arg, err)
	}
	if id.Node != node {
		return named{}, fmt.Errorf("%s is on node %s, this is node %s; nothing was changed; run the command on node %[2]s", arg, id.Node, node)
	}
	if in != "" && id.Pool != in {
		return named{}, fmt.Errorf("%s is in pool %s, not in pool %s; nothing was changed", arg, id.Pool, in)
	}
	return named{name: id.LV, pool: id.Pool}, nil
}

// logical resolves an argument that names a logical volume of the pool in, and
// returns the logical volume's name.
func (h *here) logical(ctx context.Context, arg, in string) (string, error) {
	n, err := h.resolve(ctx, arg, in)
	return n.name, err
}

// matches reports whether n names the volume or snapshot with the given pool, name
// and logical volume. An id matches only the logical volume.
func (n named) matches(in, name, lv string) bool {
	if n.pool != "" {
		return n.pool == in && n.name == lv
	}
	return n.name != "" && (n.name == name || n.name == lv)
}

// volume returns the volume that n names.
//
// Errors: no volume, or several.
func (n named) volume(found []*pool.Inspection) (pool.VolumeState, error) {
	matches := slices.DeleteFunc(volumesOf(found), func(v pool.VolumeState) bool { return !n.matches(v.Pool, v.Name, v.LV) })
	switch len(matches) {
	case 0:
		return pool.VolumeState{}, fmt.Errorf("no volume %q in the inspected pools", n.name)
	case 1:
		return matches[0], nil
	}
	return pool.VolumeState{}, fmt.Errorf("volume %q is ambiguous: use --pool, or name the logical volume", n.name)
}

// snapshot returns the snapshot that n names in the pool in.
//
// Errors: no snapshot, or several.
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
	return pool.LayerState{}, fmt.Errorf("snapshot %q in pool %s is ambiguous: use its id", n.name, in)
}

// caller describes who runs the command, and on which host. For kubectl exec the
// machine knows no person; the cluster's audit log does.
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

// by returns the options of a change, which record the caller.
func by() pool.Options { return pool.Options{By: caller()} }
