// Package driver is the node role's CSI plugin: the Identity, Controller and
// Node services of CSI 1.13 in front of the pools of one node. It is thin: it
// checks requests, maps them to the pools and to file systems, and their
// errors to gRPC codes.
package driver

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/handle"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/pool"
)

// Name is the driver's name in Kubernetes objects.
const Name = handle.Driver

// Options are what a driver serves.
type Options struct {
	NodeName   string // as the container orchestrator calls this node
	KubeletDir string // all staging and target paths lie below; /var/lib/kubelet if empty
	Version    string // of this program, for GetPluginInfo
	Pools      []*pool.Pool
}

// Driver serves CSI for one node.
type Driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer

	nodeName   string
	node       string // short form of nodeName, in ids and topology
	kubeletDir string // without symbolic links
	version    string
	pools      []*pool.Pool
	running    operations
	reserved   reservations
}

// New checks the options and returns a driver; Serve makes it listen.
func New(o Options) (*Driver, error) {
	if err := handle.CheckNode(o.NodeName); err != nil {
		return nil, err
	}
	if len(o.Pools) == 0 {
		return nil, errors.New("no pool to serve")
	}
	if o.KubeletDir == "" {
		o.KubeletDir = "/var/lib/kubelet"
	}
	dir, err := filepath.EvalSymlinks(o.KubeletDir)
	if err != nil {
		return nil, fmt.Errorf("kubelet directory: %w", err)
	}
	return &Driver{
		nodeName:   o.NodeName,
		node:       handle.ShortNode(o.NodeName),
		kubeletDir: dir,
		version:    o.Version,
		pools:      o.Pools,
		running:    operations{names: map[string]string{}},
	}, nil
}

// errNotOurs: the id was not made by this driver on any node, so what it names
// does not exist.
var errNotOurs = errors.New("not an id of this driver")

// locate finds the pool of a volume or snapshot id. Errors: errNotOurs, and
// NOT_FOUND for a well-formed id of another node or of a pool that is not
// configured here.
func (d *Driver) locate(s string) (*pool.Pool, handle.ID, error) {
	i, ok := handle.Parse(s)
	if !ok {
		return nil, handle.ID{}, fmt.Errorf("%q: %w", s, errNotOurs)
	}
	if i.Node != d.node {
		return nil, handle.ID{}, notFound("%s is on node %s, this is node %s", s, i.Node, d.node)
	}
	p := d.pool(i.Pool)
	if p == nil {
		return nil, handle.ID{}, notFound("%s is in pool %s, which is not configured on node %s", s, i.Pool, d.node)
	}
	return p, i, nil
}

// pool returns the pool of that name, or nil.
func (d *Driver) pool(name string) *pool.Pool {
	for _, p := range d.pools {
		if p.Name() == name {
			return p
		}
	}
	return nil
}

// id returns the id of a volume or snapshot.
func (d *Driver) id(p *pool.Pool, lv string) string {
	return handle.ID{Node: d.node, Pool: p.Name(), LV: lv}.String()
}

// topology is where everything of this node is accessible from.
func (d *Driver) topology() *csi.Topology {
	return &csi.Topology{Segments: map[string]string{handle.TopologyKey: d.node}}
}

// includes tells whether a topology contains this node. One that does not
// name our key does not restrict us.
func (d *Driver) includes(t *csi.Topology) bool {
	node, ok := t.GetSegments()[handle.TopologyKey]
	return !ok || node == d.node
}

// reachable checks a request's accessibility requirements.
func (d *Driver) reachable(r *csi.TopologyRequirement) error {
	for _, t := range r.GetRequisite() {
		if d.includes(t) {
			return nil
		}
	}
	if len(r.GetRequisite()) == 0 {
		return nil
	}
	return exhausted("the accessibility requirements do not include this node, %s", d.node)
}
