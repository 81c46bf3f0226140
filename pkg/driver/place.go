package driver

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// poolsFor returns the names of the pools in which volumes of a class may be. If
// the class names a pool, poolsFor returns that name, even if this node does not
// have the pool. Otherwise it returns the node's only pool, or for transient
// volumes, which always have a source, all pools. It returns none if the class
// must name a pool.
func (d *Driver) poolsFor(class parameters) []string {
	switch all := d.pools.Names(); {
	case class.pool != "":
		return []string{class.pool}
	case len(all) == 1 || class.transient:
		return all
	}
	return nil
}

// place is the pool of a new volume, and the source of its content.
type place struct {
	pool   *pool.Pool
	from   *pool.Pool // the pool of the source; it differs from pool if the content is copied
	source pool.Source
}

// place chooses the pool of a new volume: the pool that the class names, or the
// source's pool, or the node's only pool, in this order. Errors: INVALID_ARGUMENT;
// NOT_FOUND; RESOURCE_EXHAUSTED for a pool that another node may have, so that
// the scheduler tries other nodes; UNAVAILABLE if a pool is not open.
func (d *Driver) place(class parameters, content *csi.VolumeContentSource) (at place, err error) {
	from, kind, err := d.sourceID(content)
	if err != nil {
		return at, err
	}
	name := from.Pool
	if names := d.poolsFor(class); len(names) == 1 {
		name = names[0]
	}
	switch all := d.pools.Names(); {
	case name == "" && len(all) == 0: // the node has none of the optional pools
		return at, exhausted("node %s has no pool", d.node)
	case name == "":
		return at, invalid("node %s has several pools; set the parameter %q of the storage class to one of %s",
			d.node, parameterPool, strings.Join(all, ", "))
	}
	at.pool, err = d.pool(name)
	if errors.Is(err, pool.ErrNotFound) {
		return at, exhausted("node %s has no pool %q", d.node, name)
	}
	at.from = at.pool
	if err != nil || kind == pool.FromNothing {
		return at, err
	}
	at.source = pool.Source{Kind: kind, LV: from.LV}
	if from.Pool != name {
		at.from, err = d.pool(from.Pool)
	}
	return at, err
}

// create creates the volume. If the content is copied from another pool, create
// waits for the copy until shortly before the caller's deadline, so that the
// caller still gets the progress of the copy. Errors: those of pool.CreateVolume
// and pool.CopyVolume.
func (at place) create(ctx context.Context, spec pool.VolumeSpec) (pool.Volume, error) {
	spec.Source = at.source
	if at.from == at.pool {
		return at.pool.CreateVolume(ctx, spec)
	}
	spec.SourcePool = at.from.Name()
	if end, limited := ctx.Deadline(); limited {
		left := time.Until(end)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, left-min(left/4, answerTime))
		defer cancel()
	}
	return at.pool.CopyVolume(ctx, spec, at.from)
}

// answerTime is the longest time that the answer takes to reach the caller.
const answerTime = time.Second

// sourceID returns the id and kind of a content source, which may be nil. Errors:
// INVALID_ARGUMENT; errNotOurs; NOT_FOUND if the source is not on this node.
func (d *Driver) sourceID(s *csi.VolumeContentSource) (i handle.ID, kind pool.SourceKind, err error) {
	var name string
	switch {
	case s == nil:
		return handle.ID{}, pool.FromNothing, nil
	case s.GetSnapshot() != nil:
		name, kind = s.GetSnapshot().GetSnapshotId(), pool.FromSnapshot
	case s.GetVolume() != nil:
		name, kind = s.GetVolume().GetVolumeId(), pool.FromVolume
	}
	if name == "" {
		return handle.ID{}, pool.FromNothing, invalid("the content source names neither a snapshot nor a volume")
	}
	i, err = d.parse(name)
	return i, kind, err
}
