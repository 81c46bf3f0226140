package driver

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// mayCreate checks the conditions that the controller role adds to a
// CreateVolume request. The caller runs the only operation on the name, so no
// other call can reserve the name meanwhile. Errors: those of reserve if the
// volume must exist; ABORTED if the controller's reservation is not valid.
func (d *Driver) mayCreate(ctx context.Context, r *csi.CreateVolumeRequest) error {
	c, name := callmeta.Of(ctx), r.GetName()
	switch {
	case c.OnlyExisting:
		return d.reserve(ctx, name, r.GetParameters()[callmeta.ParameterPool], c.Reservation)
	case c.Reservation != "":
		return d.reserved.Check(name, c.Reservation)
	}
	return nil
}

// Reserve reserves many volume names for the controller role. It answers each
// question like a CreateVolume that must create nothing, without the volume.
func (d *Driver) Reserve(ctx context.Context, r *roleapi.ReserveRequest) (*roleapi.ReserveResponse, error) {
	reply := &roleapi.ReserveResponse{Answers: make([]*roleapi.NameAnswer, 0, len(r.GetNames()))}
	for _, n := range r.GetNames() {
		s := status.Convert(toStatus(d.answer(ctx, n)))
		a := &roleapi.NameAnswer{Code: uint32(s.Code())}
		if s.Code() != codes.NotFound { // the usual answer needs no words
			a.Message = strings.ToValidUTF8(s.Message()[:min(len(s.Message()), maxNameMessage)], "")
		}
		reply.Answers = append(reply.Answers, a)
	}
	return reply, nil
}

// maxNameMessage is the number of bytes that the message of an answer may have, so
// that many answers fit into one reply.
const maxNameMessage = 256

// answer answers one question of Reserve. Errors: those of reserve; ABORTED while
// another call changes the name.
func (d *Driver) answer(ctx context.Context, n *roleapi.WantedName) error {
	if err := checkName(n.GetName()); err != nil {
		return err
	}
	end, err := d.running.begin("Reserve", volumeName(n.GetName()))
	if err != nil {
		return err
	}
	defer end()
	return d.reserve(ctx, n.GetName(), n.GetPool(), n.GetReservation())
}

// reserve reserves a volume name, unless reservation is "". It returns nil, and
// reserves nothing, if a volume has the name. The caller runs the only operation on
// the name. Errors: NOT_FOUND if no volume has the name; ABORTED if another
// controller has reserved it; UNAVAILABLE if the pool asked is not open, because it
// may contain the volume. asked may be "", which means any pool.
func (d *Driver) reserve(ctx context.Context, name, asked, reservation string) error {
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
	if reservation != "" {
		if err := d.reserved.Take(name, reservation, time.Now()); err != nil {
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
