package driver

import (
	"cmp"
	"context"
	"path/filepath"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// A volume can be staged in the other mode than before, as backup tools do that
// write a raw device and then have its file system mounted. People who may write
// PersistentVolumes decide that, as no claim's mode can be changed. Not in both
// modes at a moment: a write below a mounted file system destroys it.

// activate returns the path of the device of a volume, and the volume as it is
// used from then on. A change of mode is on record before the device is used: to a
// block device, after which it is never formatted; or to the file system that is on
// it. If nobody can have written to it, it gets one as a new volume does.
func (d *Driver) activate(ctx context.Context, p *pool.Pool, v pool.Volume, i handle.ID, use usage) (pool.Volume, string, error) {
	if use.mode != v.Mode && !v.Foreign && (use.mode == pool.Block || !v.Formatted) {
		if err := p.SetMode(ctx, i.LV, use.mode, cmp.Or(use.fsType, defaultFSType)); err != nil {
			return v, "", err
		}
	}
	path, err := p.Activate(ctx, i.LV)
	if err != nil {
		return v, "", err
	}
	// Activation may have found that it must get a new file system, or that a
	// rollback brought it one.
	if v, err = p.Volume(ctx, i.LV); err != nil {
		return v, "", err
	}
	if use.mode == pool.Filesystem {
		if err := d.notRaw(i, path); err != nil {
			return v, "", err
		}
	}
	if use.mode == v.Mode {
		return v, path, nil
	}
	as := v
	as.Mode, as.FSType = use.mode, use.fsType
	if as.FSType, err = foundType(ctx, as, path); err != nil || v.Foreign {
		return as, path, err
	}
	if err = p.SetMode(ctx, i.LV, use.mode, as.FSType); err == nil {
		as, err = p.Volume(ctx, i.LV)
	}
	return as, path, err
}

// notRaw refuses to mount the file system of a volume that is staged or published
// as a block device.
func (d *Driver) notRaw(i handle.ID, device string) error {
	mounts, err := filesystem.Mounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		raw := d.inside(m.Mountpoint) && filepath.Base(m.Mountpoint) == i.String()
		if d.inside(m.Mountpoint) && (m.FSType == "devtmpfs" || m.FSType == "tmpfs") { // what a device node lies on
			own, err := filesystem.MountedFrom(m, device)
			if err != nil {
				return err
			}
			raw = raw || own
		}
		if raw {
			return precondition("volume %s is in use as a block device at %s; unstage it there first", i, m.Mountpoint)
		}
	}
	return nil
}
