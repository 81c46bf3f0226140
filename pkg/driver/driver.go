// Package driver is the node role's CSI plugin: the Identity, Controller and
// Node services of CSI 1.13 in front of the pools of one node. It is thin: it
// checks requests, maps them to the pools and to file systems, and their
// errors to gRPC codes.
package driver

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// Name is the driver's name in Kubernetes objects.
const Name = handle.Driver

// Options are what a driver serves.
type Options struct {
	NodeName   string // as the container orchestrator calls this node
	KubeletDir string // all staging and target paths lie below; /var/lib/kubelet if empty
	Version    string // of this program, for GetPluginInfo
	Pools      *pool.Set
	Fronts     []Front                     // where to answer beside the unix socket
	Observe    grpc.UnaryServerInterceptor // if not nil: sees all calls with their results
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
	pools      *pool.Set
	running    operations
	reserved   callmeta.Reservations
	fronts     []Front
	observe    grpc.UnaryServerInterceptor
	notGrown   sync.Map // volume id to the error why its file system could not be grown
	notStaged  sync.Map // volume id to the error why it could not be staged, if people must see to that
}

// New checks the options and returns a driver; Serve makes it listen.
func New(o Options) (*Driver, error) {
	if err := handle.CheckNode(o.NodeName); err != nil {
		return nil, err
	}
	if o.Pools == nil {
		return nil, errors.New("no pools to serve")
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
		fronts:     o.Fronts,
		observe:    o.Observe,
	}, nil
}

// errNotOurs: the id was not made by this driver on any node, so what it names
// does not exist.
var errNotOurs = errors.New("not an id of this driver")

// parse takes an id of this node apart. Errors: errNotOurs, and NOT_FOUND for
// a well-formed id of another node or of a pool that is not configured here.
func (d *Driver) parse(s string) (handle.ID, error) {
	i, ok := handle.Parse(s)
	if !ok {
		return handle.ID{}, fmt.Errorf("%q: %w", s, errNotOurs)
	}
	if i.Node != d.node {
		return handle.ID{}, notFound("%s is on node %s, this is node %s", s, i.Node, d.node)
	}
	if !d.pools.Expect(i.Pool) {
		return handle.ID{}, notFound("%s is in pool %s, which is not configured on node %s", s, i.Pool, d.node)
	}
	return i, nil
}

// locate finds the pool of a volume or snapshot id. Errors: those of parse, and
// pool.ErrUnavailable if the pool is not open.
func (d *Driver) locate(s string) (*pool.Pool, handle.ID, error) {
	i, err := d.parse(s)
	if err != nil {
		return nil, handle.ID{}, err
	}
	p, err := d.pool(i.Pool)
	return p, i, err
}

// pool returns a pool that is open. Errors: pool.ErrNotFound, pool.ErrUnavailable.
func (d *Driver) pool(name string) (*pool.Pool, error) {
	p, err := d.pools.Pool(name)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", d.node, err)
	}
	return p, nil
}

// allPools returns the pools of that name or, if one of them is not open, the
// reason: whoever reads a list without its volumes would take them for deleted.
func (d *Driver) allPools(names ...string) ([]*pool.Pool, error) {
	var all []*pool.Pool
	for _, name := range names {
		p, err := d.pool(name)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
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
