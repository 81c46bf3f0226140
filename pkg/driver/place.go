package driver

import (
	"errors"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/handle"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/pool"
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

// place chooses the pool of a new volume: the one that its class names, else its
// source's, else the only one. The source, if there is one, is in that pool.
// A pool that another node may have is RESOURCE_EXHAUSTED: the scheduler tries
// again. Other errors: INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE.
func (d *Driver) place(class parameters, content *csi.VolumeContentSource) (*pool.Pool, pool.Source, error) {
	from, kind, err := d.sourceID(content)
	if err != nil {
		return nil, pool.Source{}, err
	}
	name := from.Pool
	if names := d.poolsFor(class); len(names) == 1 {
		name = names[0]
	}
	if name == "" {
		return nil, pool.Source{}, invalid("the storage class needs the parameter %q: node %s has several pools: %s",
			parameterPool, d.node, strings.Join(d.pools.Names(), ", "))
	}
	p, err := d.pool(name)
	switch {
	case errors.Is(err, pool.ErrNotFound):
		return nil, pool.Source{}, exhausted("node %s has no pool %q", d.node, name)
	case err != nil:
		return nil, pool.Source{}, err
	case kind == pool.FromNothing:
		return p, pool.Source{}, nil
	case from.Pool != name:
		return nil, pool.Source{}, invalid("the source is in pool %s: a volume in pool %s cannot be made from it", from.Pool, name)
	}
	return p, pool.Source{Kind: kind, LV: from.LV}, nil
}

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
