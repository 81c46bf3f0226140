// Package driver is the CSI plugin of the node role. It serves the Identity,
// Controller and Node services of CSI 1.13 for the pools of one node. The
// package checks requests and passes them to the packages pool and filesystem,
// which do the work.
//
// Sizes in CSI messages are bytes. The Driver's methods may be called
// concurrently. While one call through Serve changes a volume, another call that
// would change the same volume fails with ABORTED. Serve turns the errors of the
// methods into gRPC status errors; the "Errors:" lists name the resulting codes.
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
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// Name is the name of the driver in Kubernetes objects.
const Name = handle.Driver

// Options configure a Driver.
type Options struct {
	NodeName   string                      // the orchestrator's name of this node
	KubeletDir string                      // contains all staging and target paths; "" is /var/lib/kubelet
	Version    string                      // of this program, for GetPluginInfo
	Pools      *pool.Set                   // the caller opens and closes it
	Fronts     []Front                     // listeners beside the unix socket; Serve closes them
	Observe    grpc.UnaryServerInterceptor // sees all calls with their results; may be nil
}

// Driver serves CSI for one node. Its methods may be called concurrently.
type Driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	roleapi.UnimplementedNamesServer

	nodeName   string
	node       string // short form of nodeName, used in ids and topology
	kubeletDir string // without symbolic links
	version    string
	pools      *pool.Set
	running    operations
	reserved   callmeta.Reservations
	fronts     []Front
	observe    grpc.UnaryServerInterceptor
	notGrown   sync.Map // volume id (string) to the error of the last attempt to grow its file system
	notStaged  sync.Map // volume id (string) to the error of its last stage, if a retry cannot help
}

// New checks the options and returns a Driver. Serve starts it. An error is
// permanent: the options are invalid, or the kubelet directory does not exist.
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

// errNotOurs: this driver has issued the id on no node, so the volume or
// snapshot does not exist.
var errNotOurs = errors.New("not an id of this driver")

// parse parses an id of this node. Errors: errNotOurs; NOT_FOUND for a
// well-formed id of another node, or of a pool that is not configured here.
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

// pool returns an open pool. Errors: pool.ErrNotFound, pool.ErrUnavailable.
func (d *Driver) pool(name string) (*pool.Pool, error) {
	p, err := d.pools.Pool(name)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", d.node, err)
	}
	return p, nil
}

// allPools returns the pools of the given names. It fails if any of them is not
// open: the caller of a list would take missing volumes for deleted ones.
// Errors: pool.ErrNotFound, pool.ErrUnavailable.
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

// topology returns the topology of all volumes and snapshots of this node.
func (d *Driver) topology() *csi.Topology {
	return &csi.Topology{Segments: map[string]string{handle.TopologyKey: d.node}}
}

// includes reports whether a topology contains this node. A topology without
// the driver's key contains all nodes.
func (d *Driver) includes(t *csi.Topology) bool {
	node, ok := t.GetSegments()[handle.TopologyKey]
	return !ok || node == d.node
}

// reachable checks that a request's accessibility requirements include this
// node. Errors: RESOURCE_EXHAUSTED.
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
