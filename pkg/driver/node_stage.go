package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// NodeStageVolume activates a volume's device. It mounts the file system at the
// staging path, or binds the device of a block volume to a file in that directory.
// A volume that never had a file system gets one, and a file system that is
// shorter than its device grows. The call is idempotent. Errors: INVALID_ARGUMENT,
// NOT_FOUND, ALREADY_EXISTS if another mount is at the path, ABORTED while the
// volume is wiped for its use as a block device, RESOURCE_EXHAUSTED,
// FAILED_PRECONDITION, UNAVAILABLE if the pool is not open.
func (d *Driver) NodeStageVolume(ctx context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	err := d.stage(ctx, r)
	d.noteStage(r.GetVolumeId(), err)
	if err != nil {
		return nil, err
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

func (d *Driver) stage(ctx context.Context, r *csi.NodeStageVolumeRequest) error {
	if r.GetVolumeId() == "" || r.GetStagingTargetPath() == "" {
		return invalid("a volume id and a staging target path are required")
	}
	use, err := parseUsage(r.GetVolumeCapability())
	if err != nil {
		return err
	}
	p, i, err := d.locate(r.GetVolumeId())
	if err != nil {
		return err
	}
	staging, err := d.ownPath(r.GetStagingTargetPath())
	if err != nil {
		return err
	}
	v, err := volumeFor(ctx, p, i, use)
	if err != nil {
		return err
	}
	if v.Foreign {
		if err := checkStaticUse(ctx, p, i, staging); err != nil {
			return err
		}
	}
	v, path, err := d.activate(ctx, p, v, i, use)
	if err != nil {
		return err
	}
	if err := d.unmountBroken(ctx, i, staging, path); err != nil {
		return err
	}
	if err := os.MkdirAll(staging, 0o750); err != nil {
		return err
	}
	// From here on the caller's deadline does not count: a mkfs that is killed at
	// every deadline would never finish.
	ctx = context.WithoutCancel(ctx)
	if v.Mode == pool.Block {
		err = stageBlock(path, blockFile(staging, i), use.mountReadOnly(v))
	} else {
		device := filesystem.Device{Path: path, Type: v.FSType, ReadOnly: v.ReadOnly, Copy: v.Copied}
		err = d.stageFilesystem(ctx, p, v, i, device, staging, use)
	}
	return err
}

// volumeFor returns the volume that a request stages or publishes. Errors:
// pool.ErrNotFound; FAILED_PRECONDITION if the volume does not support the use.
func volumeFor(ctx context.Context, p *pool.Pool, i handle.ID, use usage) (pool.Volume, error) {
	v, err := p.Volume(ctx, i.LV)
	if err != nil {
		return v, err
	}
	if why := use.mismatch(v); why != "" {
		return v, precondition("volume %s: %s", i, why)
	}
	return v, nil
}

// unmountBroken unmounts a volume from its staging path if its file system has
// failed: only a new mount repairs it. Errors: FAILED_PRECONDITION while the file
// system is also mounted at other paths.
func (d *Driver) unmountBroken(ctx context.Context, i handle.ID, staging, device string) error {
	m, err := filesystem.MountAt(staging)
	if m == nil || err != nil {
		return err
	}
	broken := filesystem.Writable(m)
	if broken == nil {
		return nil
	}
	if own, err := filesystem.MountedFrom(m, device); !own || err != nil {
		return err // the stage itself refuses the mount of another device
	}
	others, err := d.mountsOfContent(m)
	if err != nil {
		return err
	}
	if len(others) > 0 {
		return precondition("volume %s: %v; stop the pods that use it: it can be mounted again only when it is no longer mounted at %v", i, broken, mountPoints(others))
	}
	klog.FromContext(ctx).Info("Mounting a file system again", "mounted", staging, "reason", broken.Error())
	return filesystem.Unmount(staging)
}

// staged reports whether the device is already mounted at a staging path.
// Errors: ALREADY_EXISTS if the mount there differs from the request.
func staged(device, at string, readOnly bool, options []string) (bool, error) {
	m, err := filesystem.MountAt(at)
	if m == nil || err != nil {
		return false, err
	}
	own, err := filesystem.MountedFrom(m, device)
	switch {
	case err != nil:
		return false, err
	case !own:
		return false, conflict("%s is already a mount of %s %s", at, m.Source, m.Root)
	case filesystem.HasOption(m, "ro") != readOnly:
		return false, conflict("the volume is already staged at %s with the options %s", at, m.Options)
	}
	if err := filesystem.InEffect(m, options); err != nil {
		return false, conflict("the volume is already staged with other options: %v", err)
	}
	return true, nil
}

func stageBlock(device, file string, readOnly bool) error {
	if done, err := staged(device, file, readOnly, nil); done || err != nil {
		return err
	}
	if err := createFile(file); err != nil {
		return err
	}
	return filesystem.Bind(device, file, readOnly, nil)
}

// createFile creates the empty file that a device node is bound to, if the file
// does not exist.
func createFile(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

func (d *Driver) stageFilesystem(ctx context.Context, p *pool.Pool, v pool.Volume, i handle.ID, device filesystem.Device, staging string, use usage) error {
	readOnly := use.mountReadOnly(v)
	done, err := staged(device.Path, staging, readOnly, use.mountFlags)
	if err != nil {
		return err
	}
	grow := done // an earlier call may have been interrupted before it grew the file system
	if !done {
		if err := prepareFilesystem(ctx, p, v, device); err != nil {
			return err
		}
		if err := recoverReader(ctx, p, v, i, device); err != nil {
			return err
		}
		if !readOnly && !v.Foreign {
			if err := device.Check(ctx); err != nil {
				return err
			}
		}
		if err := device.SetIdentity(i.String()); err != nil {
			return err
		}
		if grow, err = device.NeedsGrow(); err != nil {
			return err
		}
		if err := device.Mount(staging, readOnly, use.mountFlags); err != nil {
			return err
		}
		if err := filesystem.Share(staging); err != nil {
			return errors.Join(err, filesystem.Unmount(staging))
		}
	}
	if grow && !readOnly && !v.Foreign {
		d.grow(ctx, i, device, staging) // a failure is in the volume's health: the content can be used
	}
	return nil
}

// grow extends a mounted file system to the end of its device. It records a
// failure for the volume's health.
func (d *Driver) grow(ctx context.Context, i handle.ID, device filesystem.Device, at string) error {
	err := device.Grow(ctx, at)
	if err == nil {
		d.notGrown.Delete(i.String())
		return nil
	}
	d.notGrown.Store(i.String(), err)
	klog.FromContext(ctx).Error(err, "Failed to grow a file system", "volume", i)
	return err
}

// checkStaticUse refuses LVM2's own logical volume if no static volume may name
// it, or if the host uses it: then its device is open although it is not staged.
func checkStaticUse(ctx context.Context, p *pool.Pool, i handle.ID, staging string) error {
	staged := false
	for _, at := range []string{staging, blockFile(staging, i)} {
		m, err := filesystem.MountAt(at)
		if err != nil {
			return err
		}
		staged = staged || m != nil
	}
	return p.StaticUse(ctx, i.LV, staged)
}

// probedType returns the type of the file system on a volume that has no record
// of it: LVM2's own logical volume, or a volume that was a block device. "" means
// that v is to be a block device. Such a volume is never formatted, as nothing
// proves that it is empty. Swap space is refused, also for a block device: the
// host may use it. Errors: filesystem.ErrContent.
func probedType(ctx context.Context, v pool.Volume, device string) (string, error) {
	swap, err := filesystem.IsSwap(ctx, device)
	switch {
	case err != nil:
		return "", err
	case swap:
		return "", fmt.Errorf("%w: logical volume %s is swap space", filesystem.ErrContent, v.LV)
	case v.Mode == pool.Block:
		return "", nil
	}
	found, err := filesystem.Probe(ctx, device)
	switch {
	case err != nil:
		return "", err
	case found == "":
		return "", fmt.Errorf("%w: logical volume %s has no file system, and is not formatted because it may hold other data; make a file system on it first", filesystem.ErrContent, v.LV)
	case !filesystem.Supported(found):
		return "", fmt.Errorf("%w: logical volume %s has %s; only ext4, xfs and btrfs can be mounted", filesystem.ErrContent, v.LV, found)
	case v.FSType != "" && v.FSType != found:
		return "", fmt.Errorf("%w: logical volume %s has %s, not %s", filesystem.ErrContent, v.LV, found, v.FSType)
	}
	return found, nil
}

// prepareFilesystem makes sure that the device has the volume's file system. It
// makes a file system only if the volume's record says that there never was one.
// It changes the record before anybody can write, so a volume that was used is
// never formatted.
//
// A recorded file system is recognised by its superblock alone. A probe would
// also find what users wrote to the end of the device, and what was there before
// the device grew. Errors: filesystem.ErrContent, FAILED_PRECONDITION.
func prepareFilesystem(ctx context.Context, p *pool.Pool, v pool.Volume, device filesystem.Device) error {
	if v.Formatted && !v.Foreign {
		return checkSuperblock(ctx, v, device)
	}
	found, err := filesystem.Probe(ctx, device.Path)
	switch {
	case err != nil:
		return err
	case found != "" && found != device.Type, v.Formatted && found == "":
		return fmt.Errorf("%w: volume %s must have %s, but %s has %q", filesystem.ErrContent, v.LV, device.Type, device.Path, found)
	case v.Formatted:
		return nil
	case v.ReadOnly:
		return precondition("volume %s is read-only and has no file system", v.LV)
	}
	// A file system of the right type without a record is left by an interrupted
	// call and may be incomplete.
	klog.FromContext(ctx).Info("Making a file system", "device", device.Path, "type", device.Type)
	if err := filesystem.Format(ctx, device.Path, device.Type); err != nil {
		return err
	}
	return p.SetFormatted(ctx, v.LV)
}

// checkSuperblock refuses a volume that has no superblock of its file system,
// although the record says that it had one or was copied. Errors:
// filesystem.ErrContent.
func checkSuperblock(ctx context.Context, v pool.Volume, device filesystem.Device) error {
	has, err := device.HasSuperblock()
	if has || err != nil {
		return err
	}
	found, err := filesystem.Probe(ctx, device.Path)
	instead := "nothing known"
	switch {
	case err != nil:
		instead = err.Error()
	case found != "":
		instead = found
	}
	return fmt.Errorf("%w: volume %s had a file system or was copied, but %s has no %s superblock (found: %s); it will not be formatted",
		filesystem.ErrContent, v.LV, device.Path, device.Type, instead)
}

// NodeUnstageVolume undoes NodeStageVolume, even if that was incomplete. The
// device stays while the volume is staged at another path. Errors:
// INVALID_ARGUMENT; NOT_FOUND; FAILED_PRECONDITION while the volume is published
// from the path; UNAVAILABLE if the pool is not open: then the mounts are removed
// and the device stays.
func (d *Driver) NodeUnstageVolume(ctx context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if r.GetVolumeId() == "" || r.GetStagingTargetPath() == "" {
		return nil, invalid("a volume id and a staging target path are required")
	}
	i, err := d.parse(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	staging, err := d.ownPath(r.GetStagingTargetPath())
	if err != nil {
		return nil, err
	}
	file := blockFile(staging, i)
	for _, at := range []string{file, staging} {
		if err := d.unmountStaged(ctx, i, at); err != nil {
			return nil, err
		}
	}
	d.notGrown.Delete(i.String()) // the next stage retries to grow the file system
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	p, err := d.pool(i.Pool)
	if err != nil {
		return nil, err
	}
	left, err := d.mountsFrom(p.DevicePath(i.LV))
	if err != nil {
		return nil, err
	}
	if len(left) == 0 { // otherwise the volume is staged at another path, whose unstage deactivates it
		err = p.Deactivate(ctx, i.LV)
	}
	if err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}
