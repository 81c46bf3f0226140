package driver

import (
	"context"
	"errors"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// mayCreate heeds the conditions of a CreateVolume request. The caller has the
// operation on the name to itself, so that no reservation comes in between.
// Errors: NOT_FOUND if the volume must exist and does not; ABORTED if the name
// is reserved by another controller, or not by this one; UNAVAILABLE if it may
// be in the pool that is asked for, and that is not open.
func (d *Driver) mayCreate(ctx context.Context, r *csi.CreateVolumeRequest) error {
	c, name, asked := callmeta.Of(ctx), r.GetName(), r.GetParameters()[parameterPool]
	if !c.OnlyExisting {
		if c.Reservation == "" {
			return nil
		}
		return d.reserved.Check(name, c.Reservation)
	}
	for _, candidate := range d.pools.Names() {
		p, err := d.pool(candidate)
		switch {
		case err != nil && (asked == "" || asked == candidate):
			return err
		case err != nil:
			continue
		}
		if _, err := p.VolumeNamed(ctx, name); !errors.Is(err, pool.ErrNotFound) {
			return err
		}
	}
	if c.Reservation != "" {
		if err := d.reserved.Take(name, c.Reservation, time.Now()); err != nil {
			return err
		}
	}
	return notFound("node %s has no volume named %q", d.node, name)
}

// existingSnapshot answers a CreateSnapshot request that must create nothing
// with the snapshot of that name, whatever it is of: the controller, which asks
// for a snapshot of a volume on another node, takes no node's mere word that a
// name is taken. Errors: NOT_FOUND; UNAVAILABLE if a pool that is not open may
// have it.
func (d *Driver) existingSnapshot(ctx context.Context, r *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	var closed error
	for _, candidate := range d.pools.Names() {
		p, err := d.pool(candidate)
		if err != nil {
			closed = err
			continue
		}
		s, err := p.SnapshotNamed(ctx, r.GetName())
		if errors.Is(err, pool.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return &csi.CreateSnapshotResponse{Snapshot: d.snapshot(p, s)}, nil
	}
	if closed != nil {
		return nil, closed
	}
	return nil, notFound("node %s has no snapshot named %q", d.node, r.GetName())
}
