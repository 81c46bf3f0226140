package driver

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// ValidateVolumeCapabilities confirms capabilities that a volume offers.
func (d *Driver) ValidateVolumeCapabilities(ctx context.Context, r *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if r.GetVolumeId() == "" || len(r.GetVolumeCapabilities()) == 0 {
		return nil, invalid("a volume id and volume capabilities are needed")
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
	if err := checkParameters(r.GetParameters(), parameterPool, "fstype"); err != nil {
		return no(err.Error())
	}
	if name, ok := r.GetParameters()[parameterPool]; ok && name != p.Name() {
		return no("the volume is in pool " + p.Name())
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext:      r.GetVolumeContext(),
		VolumeCapabilities: r.GetVolumeCapabilities(),
		Parameters:         r.GetParameters(),
	}}, nil
}

// ListVolumes returns the volumes of all pools, page by page.
func (d *Driver) ListVolumes(ctx context.Context, r *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	var all []*csi.ListVolumesResponse_Entry
	for _, p := range d.pools {
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

// ControllerGetVolume returns one volume.
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

// GetCapacity returns the room for new volumes: of the pool that the
// parameters name, or of all.
func (d *Driver) GetCapacity(ctx context.Context, r *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	if err := checkParameters(r.GetParameters(), parameterPool, "fstype"); err != nil {
		return nil, err
	}
	pools := d.pools
	if name, ok := r.GetParameters()[parameterPool]; ok {
		pools = nil
		if p := d.pool(name); p != nil {
			pools = []*pool.Pool{p}
		}
	}
	if !d.includes(r.GetAccessibleTopology()) || !supported(r.GetVolumeCapabilities()) {
		pools = nil
	}
	var free, largest size.Bytes
	for _, p := range pools {
		c, err := p.Capacity(ctx)
		if err != nil {
			return nil, err
		}
		free += c.Free
		largest = max(largest, c.MaxVolume)
	}
	return &csi.GetCapacityResponse{
		AvailableCapacity: int64(free),
		MaximumVolumeSize: wrapperspb.Int64(int64(largest)),
	}, nil
}

// supported tells whether a volume of these capabilities can be made; none is
// no restriction.
func supported(list []*csi.VolumeCapability) bool {
	if len(list) == 0 {
		return true
	}
	_, err := parseUsages(list)
	return err == nil
}
