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

// poolsFor returns the names of the pools in which volumes of a class may be: the
// one that it names, which this node may lack; if it names none, the only one,
// or for volumes that always have a source any. None if the class must name one.
func (d *Driver) poolsFor(class parameters) []string {
	switch all := d.pools.Names(); {
	case class.pool != "":
		return []string{class.pool}
	case len(all) == 1 || class.transient:
		return all
	}
	return nil
}

// place is where a new volume is made, and from what.
type place struct {
	pool   *pool.Pool
	from   *pool.Pool // that the source is in: pool, unless the volume is copied
	source pool.Source
}

// place chooses the pool of a new volume: the one that its class names, else its
// source's, else the only one. A pool that another node may have is
// RESOURCE_EXHAUSTED: the scheduler tries again. Other errors: INVALID_ARGUMENT,
// NOT_FOUND, UNAVAILABLE.
func (d *Driver) place(class parameters, content *csi.VolumeContentSource) (at place, err error) {
	from, kind, err := d.sourceID(content)
	if err != nil {
		return at, err
	}
	name := from.Pool
	if names := d.poolsFor(class); len(names) == 1 {
		name = names[0]
	}
	if name == "" && len(d.pools.Names()) == 0 {
		return at, exhausted("node %s has no pool", d.node)
	}
	switch all := d.pools.Names(); {
	case name == "" && len(all) == 0: // the node has none of the optional ones
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

// make makes the volume. One that is copied from another pool is asked for until
// its caller is about to give up, which is told then how far the copy is.
func (at place) make(ctx context.Context, spec pool.VolumeSpec) (pool.Volume, error) {
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

// answerTime is what the answer takes to reach the caller, at most.
const answerTime = time.Second

// sourceID takes a content source apart, nil if a volume has none. Errors:
// INVALID_ARGUMENT, NOT_FOUND if it is not of this node.
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
