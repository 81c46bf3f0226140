package driver

import (
	"cmp"
	"context"
	"errors"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// CreateVolume creates a volume, empty or with the content of a snapshot or of
// another volume. It is idempotent by name. Errors: INVALID_ARGUMENT; NOT_FOUND
// for the source; ALREADY_EXISTS if the name belongs to a volume that differs
// from the request; OUT_OF_RANGE; RESOURCE_EXHAUSTED if another node may have
// the room or the pool; FAILED_PRECONDITION; ABORTED while content is copied,
// or if the name is reserved; UNAVAILABLE if the pool is not open.
func (d *Driver) CreateVolume(ctx context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if err := checkName(r.GetName()); err != nil {
		return nil, err
	}
	if err := d.mayCreate(ctx, r); err != nil {
		return nil, err
	}
	use, err := parseUsages(r.GetVolumeCapabilities())
	if err != nil {
		return nil, err
	}
	if err := noMutable(r.GetMutableParameters()); err != nil {
		return nil, err
	}
	class, err := parseParameters(r.GetParameters())
	if err != nil {
		return nil, err
	}
	at, err := d.place(class, r.GetVolumeContentSource())
	if err != nil {
		return nil, err
	}
	p, spec := at.pool, pool.VolumeSpec{Name: r.GetName(), Mode: use.mode, FSType: use.fsType, ReadOnly: use.readOnly}
	if spec.Size, spec.Limit, err = capacityRange(r.GetCapacityRange()); err != nil {
		return nil, err
	}
	if err := d.reachable(r.GetAccessibilityRequirements()); err != nil {
		return nil, err
	}
	if err := d.takenElsewhere(ctx, p, spec.Name); err != nil {
		return nil, err
	}
	if spec.Transient, err = mayBeTransient(ctx, class); err != nil {
		return nil, err
	}
	if err := mayChangeMode(ctx, at, spec, class.modeChange); err != nil {
		return nil, err
	}
	// A volume with a source has content for readers, so it need not be shared.
	spec.Shared = use.multiNode && !use.readOnly && at.source.Kind == pool.FromNothing
	if spec.Mode == pool.Filesystem {
		if err := prepareSpec(ctx, at, &spec); err != nil {
			return nil, err
		}
	}
	_, missing := p.VolumeNamed(ctx, spec.Name)
	v, err := at.create(ctx, spec)
	if err != nil {
		return nil, err
	}
	if err := reserveRecovery(ctx, p, v); err != nil {
		if errors.Is(missing, pool.ErrNotFound) && errors.Is(err, pool.ErrNoSpace) { // this call created it, and nobody uses it yet
			err = errors.Join(err, p.DeleteVolume(context.WithoutCancel(ctx), v.LV))
		}
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: d.volume(p, v)}, nil
}

// mayBeTransient reports whether a request asks for a transient volume, which
// loses its writes when the node restarts. If the request names a claim, the
// controller must have checked that a pod owns the claim. A request without a
// claim does not come from Kubernetes and is not checked.
// Errors: FAILED_PRECONDITION.
func mayBeTransient(ctx context.Context, class parameters) (bool, error) {
	if class.transient && class.claim != "" && !callmeta.Of(ctx).Ephemeral {
		return false, precondition("claim %s: transient volumes are created only for claims that a pod owns, and only through the controller, which checks the owner", class.claim)
	}
	return class.transient, nil
}

// prepareSpec sets the file system, if the request names none, and the smallest
// size of the volume. Errors: OUT_OF_RANGE.
func prepareSpec(ctx context.Context, at place, spec *pool.VolumeSpec) error {
	if spec.FSType == "" {
		_, found := at.sourceUse(ctx)
		spec.FSType = cmp.Or(found, defaultFSType)
	}
	spec.Least = filesystem.MinimumSize(spec.FSType)
	if at.source.Kind == pool.FromNothing && spec.Limit != 0 && spec.Limit < spec.Least {
		return outOfRange("%s needs at least %v", spec.FSType, spec.Least)
	}
	return nil
}

// mayChangeMode refuses to create a file system volume from a raw block volume
// unless the class allows it: the kernel trusts the file systems that it mounts,
// and a pod wrote this content. A source that does not exist passes: either the
// new volume exists already, or its creation fails. Errors: FAILED_PRECONDITION.
func mayChangeMode(ctx context.Context, at place, spec pool.VolumeSpec, allowed bool) error {
	if mode, _ := at.sourceUse(ctx); spec.Mode == pool.Filesystem && mode == pool.Block && !allowed {
		return precondition("%s %s holds data that pods wrote to a raw block volume; to let it be mounted as a file system, set the parameter %s: \"true\" in the storage class",
			at.source.Kind, at.source.LV, callmeta.ParameterModeChange)
	}
	return nil
}

// sourceUse returns the mode of a volume's source and the file system of its
// content. Both are "" if there is no source or it cannot be read.
func (at place) sourceUse(ctx context.Context) (mode pool.Mode, fsType string) {
	switch at.source.Kind {
	case pool.FromSnapshot:
		if snapshot, err := at.from.Snapshot(ctx, at.source.LV); err == nil {
			return snapshot.Mode, snapshot.FSType
		}
	case pool.FromVolume:
		if v, err := at.from.Volume(ctx, at.source.LV); err == nil {
			return v.Mode, v.FSType
		}
	}
	return "", ""
}

// takenElsewhere refuses a name that a volume of another pool has: a repeated
// request must not create a second volume because its parameters changed. Pools
// that are not open are skipped: the request names its pool, and a broken disk
// must not block the use of other pools. Errors: ALREADY_EXISTS.
func (d *Driver) takenElsewhere(ctx context.Context, p *pool.Pool, name string) error {
	for _, candidate := range d.pools.Names() {
		other, err := d.pool(candidate)
		if err != nil || other == p {
			continue
		}
		if _, err := other.VolumeNamed(ctx, name); err == nil {
			return conflict("volume %q already exists in pool %s", name, other.Name())
		}
	}
	return nil
}

// volume returns the CSI description of a volume.
func (d *Driver) volume(p *pool.Pool, v pool.Volume) *csi.Volume {
	r := &csi.Volume{
		VolumeId:           d.id(p, v.LV),
		CapacityBytes:      int64(v.Size),
		AccessibleTopology: []*csi.Topology{d.topology()},
	}
	source := handle.ID{Node: d.node, Pool: cmp.Or(v.SourcePool, p.Name()), LV: v.Source.LV}.String()
	switch v.Source.Kind {
	case pool.FromSnapshot:
		r.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: source},
		}}
	case pool.FromVolume:
		r.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: source},
		}}
	}
	return r
}

// DeleteVolume deletes a volume. The volume's snapshots stay. A volume that does
// not exist is no error. Errors: INVALID_ARGUMENT; NOT_FOUND for an id of
// another node or pool; FAILED_PRECONDITION while the volume is staged or
// otherwise in use; UNAVAILABLE if the pool is not open.
func (d *Driver) DeleteVolume(ctx context.Context, r *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("no volume id is given")
	}
	p, i, err := d.locate(r.GetVolumeId())
	if errors.Is(err, errNotOurs) {
		return &csi.DeleteVolumeResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	// The pool sees that a mounted file system keeps its device open. A bind
	// mount of a device node does not keep the device open.
	mounts, err := filesystem.Mounts()
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		if filepath.Base(m.Mountpoint) == i.String() && d.inside(m.Mountpoint) {
			return nil, precondition("volume %s is staged at %s", i, m.Mountpoint)
		}
	}
	if err := p.DeleteVolume(ctx, i.LV); err != nil {
		return nil, err
	}
	d.notStaged.Delete(i.String())
	return &csi.DeleteVolumeResponse{}, nil
}

// ControllerExpandVolume grows a volume, in use or not, with or without
// snapshots. NodeExpandVolume or the next stage grows the file system. Errors:
// INVALID_ARGUMENT, NOT_FOUND, OUT_OF_RANGE also if the pool has no room,
// FAILED_PRECONDITION, UNAVAILABLE if the pool is not open.
func (d *Driver) ControllerExpandVolume(ctx context.Context, r *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	if r.GetVolumeId() == "" || r.GetCapacityRange() == nil {
		return nil, invalid("a volume id and a capacity range are required")
	}
	required, limit, err := capacityRange(r.GetCapacityRange())
	if err != nil {
		return nil, err
	}
	p, i, err := d.locate(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if err := d.offers(ctx, p, i, r.GetVolumeCapability()); err != nil {
		return nil, err
	}
	v, err := p.ExpandVolume(ctx, i.LV, required, limit)
	if err != nil {
		return nil, noRoomIsOutOfRange(err)
	}
	files := v.Mode == pool.Filesystem
	if c := r.GetVolumeCapability(); c != nil { // the volume may not be staged in its new mode yet
		files = c.GetMount() != nil
	}
	return &csi.ControllerExpandVolumeResponse{
		CapacityBytes:         int64(v.Size),
		NodeExpansionRequired: files && !v.ReadOnly,
	}, nil
}

// offers checks the optional capability of an expansion. Errors:
// INVALID_ARGUMENT if the volume does not support it, NOT_FOUND.
func (d *Driver) offers(ctx context.Context, p *pool.Pool, i handle.ID, c *csi.VolumeCapability) error {
	if c == nil {
		return nil
	}
	use, err := parseUsage(c)
	if err != nil {
		return err
	}
	v, err := p.Volume(ctx, i.LV)
	if err != nil {
		return err
	}
	if why := use.mismatch(v); why != "" {
		return invalid("volume %s: %s", i, why)
	}
	return nil
}
