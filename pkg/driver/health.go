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

// merge joins the conditions of one severity and reason: CSI allows one each.
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

// unusable is what is wrong with everything in a pool that is not open.
func unusable(err error) []pool.Condition {
	return []pool.Condition{{Severity: pool.Inaccessible, Reason: "PoolUnavailable", Message: err.Error()}}
}

// health returns what is wrong with a volume.
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

// ControllerGetVolumeHealth tells what is wrong with a volume.
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

// ControllerListVolumeHealth returns the volumes with which something is wrong.
// UNAVAILABLE while one of the pools is not open: its volumes cannot be named.
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
				continue // an error here: it was deleted meanwhile
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

// NodeGetVolumeHealth tells what is wrong with a volume. Where it is not mounted is
// no fault: the orchestrator may have failed to get there.
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

// NodeGetStorageHealth tells what is wrong with the pools of this node.
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
				c.Severity = pool.Degraded // of a backend there is no worse that is not "unreachable"
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
