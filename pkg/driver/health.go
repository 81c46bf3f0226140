package driver

import (
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

var volumeSeverity = map[pool.Severity]csi.VolumeHealthErrorType{
	pool.Degraded:     csi.VolumeHealthErrorType_DEGRADED,
	pool.Inaccessible: csi.VolumeHealthErrorType_INACCESSIBLE,
	pool.DataLoss:     csi.VolumeHealthErrorType_DATA_LOSS,
}

// merge joins conditions of the same severity and reason: CSI allows only one
// entry for each.
func merge(conditions []pool.Condition) []pool.Condition {
	var out []pool.Condition
next:
	for _, c := range conditions {
		for i := range out {
			if out[i].Severity == c.Severity && out[i].Reason == c.Reason {
				out[i].Message += "; " + c.Message
				continue next
			}
		}
		out = append(out, c)
	}
	return out
}

func volumeHealth(id string, conditions []pool.Condition) *csi.VolumeHealth {
	h := &csi.VolumeHealth{VolumeId: id}
	for _, c := range merge(conditions) {
		h.HealthStatuses = append(h.HealthStatuses, &csi.VolumeHealth_VolumeHealthEntry{
			Status: volumeSeverity[c.Severity], Reason: c.Reason, Message: c.Message,
		})
	}
	return h
}

// unusable returns the condition of everything in a pool that is not open. err
// is the reason.
func unusable(err error) []pool.Condition {
	return []pool.Condition{{Severity: pool.Inaccessible, Reason: "PoolUnavailable", Message: err.Error()}}
}

// health returns the conditions of a volume; none if the volume is healthy.
// Errors: errNotOurs, NOT_FOUND.
func (d *Driver) health(ctx context.Context, volume string) ([]pool.Condition, error) {
	p, i, err := d.locate(volume)
	if errors.Is(err, pool.ErrUnavailable) {
		return unusable(err), nil
	}
	if err != nil {
		return nil, err
	}
	mounts, err := d.stagedFilesystems()
	if err != nil {
		return nil, err
	}
	return d.conditions(ctx, p, i.LV, mounts)
}

// ControllerGetVolumeHealth returns what is wrong with a volume. A pool that is
// not open is a condition, not an error. Errors: INVALID_ARGUMENT, NOT_FOUND.
func (d *Driver) ControllerGetVolumeHealth(ctx context.Context, r *csi.ControllerGetVolumeHealthRequest) (*csi.ControllerGetVolumeHealthResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("no volume id is given")
	}
	conditions, err := d.health(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeHealthResponse{VolumeHealth: volumeHealth(r.GetVolumeId(), conditions)}, nil
}

// ControllerListVolumeHealth returns the unhealthy volumes, page by page.
// Errors: INVALID_ARGUMENT; ABORTED for a token of another listing; UNAVAILABLE
// if any of the pools is not open, because its volumes cannot be listed.
func (d *Driver) ControllerListVolumeHealth(ctx context.Context, r *csi.ControllerListVolumeHealthRequest) (*csi.ControllerListVolumeHealthResponse, error) {
	pools, err := d.allPools(d.pools.Names()...)
	if err != nil {
		return nil, err
	}
	mounts, err := d.stagedFilesystems()
	if err != nil {
		return nil, err
	}
	var all []*csi.VolumeHealth
	for _, p := range pools {
		volumes, err := p.Volumes(ctx)
		if err != nil {
			return nil, err
		}
		for _, v := range volumes {
			conditions, err := d.conditions(ctx, p, v.LV, mounts)
			if err != nil || len(conditions) == 0 {
				continue // an error means that the volume was deleted meanwhile
			}
			all = append(all, volumeHealth(d.id(p, v.LV), conditions))
		}
	}
	page, next, err := paginate(d, all, (*csi.VolumeHealth).GetVolumeId, r.GetStartingToken(), r.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerListVolumeHealthResponse{Entries: page, NextToken: next}, nil
}

// NodeGetVolumeHealth returns what is wrong with a volume. A missing mount is not
// a fault: the orchestrator may not have mounted the volume yet. A pool that is
// not open is a condition, not an error. Errors: INVALID_ARGUMENT, NOT_FOUND.
func (d *Driver) NodeGetVolumeHealth(ctx context.Context, r *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("no volume id is given")
	}
	conditions, err := d.health(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: volumeHealth(r.GetVolumeId(), conditions)}, nil
}

// NodeGetStorageHealth returns what is wrong with the pools of this node. It
// returns no error.
func (d *Driver) NodeGetStorageHealth(ctx context.Context, _ *csi.NodeGetStorageHealthRequest) (*csi.NodeGetStorageHealthResponse, error) {
	var all []pool.Condition
	for _, name := range d.pools.Names() {
		var conditions []pool.Condition
		if p, err := d.pool(name); err != nil {
			conditions = unusable(err)
		} else {
			conditions = p.PoolHealth(ctx)
		}
		for _, c := range conditions {
			c.Message = fmt.Sprintf("pool %s: %s", name, c.Message)
			if c.Severity == pool.DataLoss {
				c.Severity = pool.Degraded // a backend has no status between "degraded" and "unreachable"
			}
			all = append(all, c)
		}
	}
	r := &csi.NodeGetStorageHealthResponse{}
	for _, c := range merge(all) {
		h := &csi.NodeGetStorageHealthResponse_StorageBackendHealth{
			Status: csi.StorageHealthErrorType_STORAGE_DEGRADED, Reason: c.Reason, Message: c.Message,
		}
		if c.Severity == pool.Inaccessible {
			h.Status = csi.StorageHealthErrorType_STORAGE_UNREACHABLE
		}
		r.BackendHealth = append(r.BackendHealth, h)
	}
	return r, nil
}
