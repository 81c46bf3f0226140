package driver

import (
	"context"
	"errors"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// mayCreate checks the conditions that the controller role adds to a
// CreateVolume request. The caller runs the only operation on the name, so no
// other call can reserve the name meanwhile. Errors: NOT_FOUND if the volume
// must exist and does not; ABORTED if another controller has reserved the name,
// or if this controller's reservation is not valid; UNAVAILABLE if the requested
// pool is not open, because it may contain the volume.
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

// existingSnapshot answers a CreateSnapshot request that must not create
// anything. It returns the snapshot with the requested name, even if its source
// is another volume: the controller asks other nodes than the source's for the
// name, and trusts no node that only claims that the name is taken. Errors:
// NOT_FOUND; UNAVAILABLE if a pool that is not open may contain the snapshot.
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
