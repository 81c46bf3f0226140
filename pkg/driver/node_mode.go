package driver

import (
	"cmp"
	"context"
	"path/filepath"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// A volume can be staged in another mode than before: some backup tools write a
// raw device and then mount its file system. Kubernetes lets nobody change the
// mode of a claim, so only users who may write PersistentVolumes can do this. A
// volume is never staged in both modes at the same time: a write below a mounted
// file system destroys the file system.

// activate activates a volume for the given use. It returns the volume as it is
// used from now on, and the path of its device. A change of mode is recorded
// before the device is used. A volume that was a block device is never formatted:
// it keeps the file system that is on it. A volume that nobody can have written
// to is formatted later, like a new volume. Errors: those of pool.SetMode and
// pool.Activate, filesystem.ErrContent, FAILED_PRECONDITION.
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
	// Activate may change the record: the volume needs a new file system, or a
	// rollback has given it one.
	if v, err = p.Volume(ctx, i.LV); err != nil {
		return v, "", err
	}
	if use.mode == pool.Filesystem {
		if err := d.refuseBlockUse(i, path); err != nil {
			return v, "", err
		}
	}
	if use.mode == v.Mode {
		return v, path, nil
	}
	as := v
	as.Mode, as.FSType = use.mode, use.fsType
	if as.FSType, err = probedType(ctx, as, path); err != nil || v.Foreign {
		return as, path, err
	}
	if err = p.SetMode(ctx, i.LV, use.mode, as.FSType); err == nil {
		as, err = p.Volume(ctx, i.LV)
	}
	return as, path, err
}

// refuseBlockUse refuses to mount the file system of a volume that is staged or
// published as a block device. Errors: FAILED_PRECONDITION.
func (d *Driver) refuseBlockUse(i handle.ID, device string) error {
	mounts, err := filesystem.Mounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		raw := d.inside(m.Mountpoint) && filepath.Base(m.Mountpoint) == i.String()
		if d.inside(m.Mountpoint) && (m.FSType == "devtmpfs" || m.FSType == "tmpfs") { // the file systems that device nodes lie on
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
