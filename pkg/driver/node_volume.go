package driver

import (
	"context"
	"errors"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// NodeGetVolumeStats returns how full the file system of a staged or published
// volume is, in bytes and inodes; for a block volume, its size in bytes. Errors:
// INVALID_ARGUMENT, NOT_FOUND, INTERNAL if the file system refuses I/O,
// UNAVAILABLE if the pool is not open.
func (d *Driver) NodeGetVolumeStats(ctx context.Context, r *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if r.GetVolumeId() == "" || r.GetVolumePath() == "" {
		return nil, invalid("a volume id and a volume path are required")
	}
	p, i, err := d.locate(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	v, err := p.Volume(ctx, i.LV)
	if err != nil {
		return nil, err
	}
	m, err := mountOf(i, r.GetVolumePath())
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, notFound("volume %s is not mounted at %s", i, r.GetVolumePath())
	}
	if err := filesystem.Reachable(m); errors.Is(err, filesystem.ErrUnreachable) {
		return nil, err
	}
	block := v.Mode == pool.Block
	if st, err := os.Stat(m.Mountpoint); v.Foreign && err == nil {
		block = !st.IsDir()
	}
	if block {
		total, err := filesystem.DeviceSize(m.Mountpoint)
		if err != nil {
			return nil, err
		}
		return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
			{Unit: csi.VolumeUsage_BYTES, Total: int64(total)},
		}}, nil
	}
	u, err := filesystem.UsageOf(m.Mountpoint)
	if err != nil {
		return nil, err
	}
	s := &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: int64(u.Total), Used: int64(u.Used), Available: int64(u.Available)},
	}}
	if u.Inodes > 0 {
		s.Usage = append(s.Usage, &csi.VolumeUsage{
			Unit: csi.VolumeUsage_INODES, Total: int64(u.Inodes), Used: int64(u.InodesUsed), Available: int64(u.InodesFree),
		})
	}
	return s, nil
}

// NodeExpandVolume grows the file system of a staged or published volume to the
// size of its device. It also grows the device, if ControllerExpandVolume has
// not. Errors: INVALID_ARGUMENT; NOT_FOUND; OUT_OF_RANGE also if the pool has no
// room; FAILED_PRECONDITION if the file system cannot grow; UNAVAILABLE if the
// pool is not open.
func (d *Driver) NodeExpandVolume(ctx context.Context, r *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	if r.GetVolumeId() == "" || r.GetVolumePath() == "" {
		return nil, invalid("a volume id and a volume path are required")
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
	m, err := mountOf(i, r.GetVolumePath())
	if err != nil {
		return nil, err
	}
	v, err := p.Volume(ctx, i.LV)
	if err != nil {
		return nil, err
	}
	// A block volume needs no mount: any path that exists is accepted.
	if m == nil {
		if _, err := os.Stat(r.GetVolumePath()); err != nil || v.Mode != pool.Block {
			return nil, notFound("volume %s is not mounted at %s", i, r.GetVolumePath())
		}
	} else if err := filesystem.Reachable(m); err != nil {
		return nil, failingIsPrecondition(err)
	}
	v, err = p.ExpandVolume(ctx, i.LV, required, limit)
	if err != nil {
		return nil, noRoomIsOutOfRange(err)
	}
	if v.Mode == pool.Filesystem && !v.ReadOnly {
		path, err := p.Activate(ctx, i.LV) // the volume is active already: Activate returns its path
		if err != nil {
			return nil, err
		}
		if own, err := filesystem.MountedFrom(m, path); err != nil {
			return nil, err
		} else if !own {
			return nil, notFound("volume %s is not mounted at %s: %s is", i, r.GetVolumePath(), m.Source)
		}
		at, err := writable(m.Mountpoint)
		if err != nil {
			return nil, failingIsPrecondition(err)
		}
		device := filesystem.Device{Path: path, Type: v.FSType}
		if err := d.grow(context.WithoutCancel(ctx), i, device, at); err != nil {
			return nil, err
		}
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: int64(v.Size)}, nil
}

// writable returns a writable mount point of the content that is mounted at path:
// a volume may be published read-only while its staging mount is writable.
// Errors: FAILED_PRECONDITION if no mount point is writable; those of
// filesystem.Writable.
func writable(path string) (string, error) {
	m, err := filesystem.MountAt(path)
	if err != nil || m == nil {
		return "", err
	}
	mounts, err := filesystem.Mounts()
	if err != nil {
		return "", err
	}
	for _, o := range mounts {
		if filesystem.SameContent(m, o) && !filesystem.HasOption(o, "ro") {
			return o.Mountpoint, filesystem.Writable(o)
		}
	}
	return "", precondition("the file system at %s is mounted read-only everywhere", path)
}
