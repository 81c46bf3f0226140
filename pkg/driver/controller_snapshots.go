package driver

import (
	"context"
	"errors"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// CreateSnapshot takes a snapshot of a volume, mounted or not. It is idempotent
// by name: a repeated call returns the first snapshot and its time.
// Errors: INVALID_ARGUMENT; NOT_FOUND for the volume; ALREADY_EXISTS if the
// name belongs to a snapshot of another volume; RESOURCE_EXHAUSTED without room
// or if the topology excludes this node; ABORTED if the file system cannot be
// frozen now; FAILED_PRECONDITION; UNAVAILABLE if the pool is not open.
func (d *Driver) CreateSnapshot(ctx context.Context, r *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if err := checkName(r.GetName()); err != nil {
		return nil, err
	}
	if r.GetSourceVolumeId() == "" {
		return nil, invalid("no source volume id is given")
	}
	if callmeta.Of(ctx).OnlyExisting {
		return d.existingSnapshot(ctx, r)
	}
	if err := checkParameters(r.GetParameters()); err != nil {
		return nil, err
	}
	p, i, err := d.locate(r.GetSourceVolumeId())
	if err != nil {
		return nil, err
	}
	if err := d.reachable(r.GetAccessibilityRequirements()); err != nil {
		return nil, err
	}
	s, err := p.CreateSnapshot(ctx, r.GetName(), i.LV)
	if err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: d.snapshot(p, s)}, nil
}

// snapshot describes a snapshot to the container orchestrator.
func (d *Driver) snapshot(p *pool.Pool, s pool.Snapshot) *csi.Snapshot {
	return &csi.Snapshot{
		SnapshotId:         d.id(p, s.LV),
		SourceVolumeId:     d.id(p, s.Volume),
		SizeBytes:          int64(s.Asked),
		CreationTime:       timestamppb.New(s.Created),
		ReadyToUse:         !s.Lost,
		AccessibleTopology: []*csi.Topology{d.topology()},
	}
}

// DeleteSnapshot deletes a snapshot. Volumes that read through the snapshot
// keep their content. A snapshot that does not exist is no error.
// Errors: INVALID_ARGUMENT; NOT_FOUND for an id of another node or pool;
// UNAVAILABLE if the pool is not open.
func (d *Driver) DeleteSnapshot(ctx context.Context, r *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if r.GetSnapshotId() == "" {
		return nil, invalid("no snapshot id is given")
	}
	p, i, err := d.locate(r.GetSnapshotId())
	if errors.Is(err, errNotOurs) {
		return &csi.DeleteSnapshotResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := p.DeleteSnapshot(ctx, i.LV); err != nil {
		return nil, err
	}
	return &csi.DeleteSnapshotResponse{}, nil
}

// ListSnapshots returns the snapshots of all pools or of one volume, or one
// snapshot, page by page. Errors: INVALID_ARGUMENT, ABORTED for a token of
// another listing, UNAVAILABLE if a pool that may have some of the snapshots is
// not open.
func (d *Driver) ListSnapshots(ctx context.Context, r *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	names := d.pools.Names()
	for _, want := range []string{r.GetSnapshotId(), r.GetSourceVolumeId()} {
		if want == "" {
			continue
		}
		names = nil
		if i, err := d.parse(want); err == nil {
			names = []string{i.Pool}
		}
	}
	pools, err := d.allPools(names...)
	if err != nil {
		return nil, err
	}
	var all []*csi.ListSnapshotsResponse_Entry
	for _, p := range pools {
		snapshots, err := p.Snapshots(ctx)
		if err != nil {
			return nil, err
		}
		for _, s := range snapshots {
			e := d.snapshot(p, s)
			if want := r.GetSnapshotId(); want != "" && want != e.GetSnapshotId() {
				continue
			}
			if want := r.GetSourceVolumeId(); want != "" && want != e.GetSourceVolumeId() {
				continue
			}
			all = append(all, &csi.ListSnapshotsResponse_Entry{Snapshot: e})
		}
	}
	page, next, err := paginate(d, all, func(e *csi.ListSnapshotsResponse_Entry) string { return e.GetSnapshot().GetSnapshotId() },
		r.GetStartingToken(), r.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	return &csi.ListSnapshotsResponse{Entries: page, NextToken: next}, nil
}

// GetSnapshot returns one snapshot. Errors: INVALID_ARGUMENT, NOT_FOUND,
// UNAVAILABLE if the pool is not open.
func (d *Driver) GetSnapshot(ctx context.Context, r *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	if r.GetSnapshotId() == "" {
		return nil, invalid("no snapshot id is given")
	}
	p, i, err := d.locate(r.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	s, err := p.Snapshot(ctx, i.LV)
	if err != nil {
		return nil, err
	}
	return &csi.GetSnapshotResponse{Snapshot: d.snapshot(p, s)}, nil
}
