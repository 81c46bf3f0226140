package driver

import (
	"cmp"
	"context"
	"errors"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// ValidateVolumeCapabilities confirms the capabilities, if the volume supports
// all of them. Otherwise the response has a message with the reason.
// Errors: INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE if the pool is not open.
func (d *Driver) ValidateVolumeCapabilities(ctx context.Context, r *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if r.GetVolumeId() == "" || len(r.GetVolumeCapabilities()) == 0 {
		return nil, invalid("a volume id and volume capabilities are required")
	}
	p, i, err := d.locate(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	v, err := p.Volume(ctx, i.LV)
	if err != nil {
		return nil, err
	}
	no := func(why string) (*csi.ValidateVolumeCapabilitiesResponse, error) {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: why}, nil
	}
	for _, c := range r.GetVolumeCapabilities() {
		use, err := parseUsage(c)
		if err != nil {
			return no(err.Error())
		}
		if why := use.mismatch(v); why != "" {
			return no(why)
		}
	}
	if err := noMutable(r.GetMutableParameters()); err != nil {
		return no(err.Error())
	}
	class, err := parseParameters(r.GetParameters())
	if err != nil {
		return no(err.Error())
	}
	if why := class.mismatch(p, v); why != "" {
		return no(why)
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext:      r.GetVolumeContext(),
		VolumeCapabilities: r.GetVolumeCapabilities(),
		Parameters:         r.GetParameters(),
	}}, nil
}

// ListVolumes returns the volumes of all pools, page by page.
// Errors: INVALID_ARGUMENT, ABORTED for a token of another listing, UNAVAILABLE
// if any of the pools is not open.
func (d *Driver) ListVolumes(ctx context.Context, r *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	pools, err := d.allPools(d.pools.Names()...)
	if err != nil {
		return nil, err
	}
	var all []*csi.ListVolumesResponse_Entry
	for _, p := range pools {
		volumes, err := p.Volumes(ctx)
		if err != nil {
			return nil, err
		}
		for _, v := range volumes {
			all = append(all, &csi.ListVolumesResponse_Entry{Volume: d.volume(p, v)})
		}
	}
	page, next, err := paginate(d, all, func(e *csi.ListVolumesResponse_Entry) string { return e.GetVolume().GetVolumeId() },
		r.GetStartingToken(), r.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	return &csi.ListVolumesResponse{Entries: page, NextToken: next}, nil
}

// ControllerGetVolume returns one volume. Errors: INVALID_ARGUMENT, NOT_FOUND,
// UNAVAILABLE if the pool is not open.
func (d *Driver) ControllerGetVolume(ctx context.Context, r *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("no volume id is given")
	}
	p, i, err := d.locate(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	v, err := p.Volume(ctx, i.LV)
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeResponse{
		Volume: d.volume(p, v),
		Status: &csi.ControllerGetVolumeResponse_VolumeStatus{},
	}, nil
}

// GetCapacity returns the room for new volumes, in bytes. It counts only the
// pools in which CreateVolume would place a volume of these parameters,
// capabilities and topology. Errors: INVALID_ARGUMENT.
func (d *Driver) GetCapacity(ctx context.Context, r *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	class, err := parseParameters(r.GetParameters())
	if err != nil {
		return nil, err
	}
	names := d.poolsFor(class)
	least, supported := leastSize(r.GetVolumeCapabilities())
	if !d.includes(r.GetAccessibleTopology()) || !supported {
		names = nil
	}
	var free, largest size.Bytes
	for _, name := range names {
		c, err := d.capacity(ctx, name)
		if err != nil {
			return nil, err
		}
		if c.MaxVolume < least {
			continue
		}
		free += c.Free
		largest = max(largest, c.MaxVolume)
	}
	return &csi.GetCapacityResponse{
		AvailableCapacity: int64(free),
		MaximumVolumeSize: wrapperspb.Int64(int64(largest)),
	}, nil
}

// capacity returns the room of a pool. A pool that does not exist or is not
// usable now has no room: after an error csi-provisioner would leave the last
// figure published.
func (d *Driver) capacity(ctx context.Context, name string) (pool.Capacity, error) {
	p, err := d.pool(name)
	if err == nil {
		var c pool.Capacity
		if c, err = p.Capacity(ctx); err == nil {
			return c, nil
		}
	}
	if errors.Is(err, pool.ErrNotFound) || errors.Is(err, pool.ErrUnavailable) {
		return pool.Capacity{}, nil
	}
	return pool.Capacity{}, err
}

// leastSize returns the size of the smallest volume with these capabilities,
// and reports whether they are supported. Without capabilities there is no
// restriction.
func leastSize(list []*csi.VolumeCapability) (least size.Bytes, supported bool) {
	if len(list) == 0 {
		return 0, true
	}
	use, err := parseUsages(list)
	if err == nil && use.mode == pool.Filesystem {
		least = filesystem.MinimumSize(cmp.Or(use.fsType, defaultFSType))
	}
	return least, err == nil
}
