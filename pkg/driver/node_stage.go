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

// NodeStageVolume activates a volume's device and mounts its file system at
// the staging path, after making one if there never was one and growing it if
// the device has grown. The device of a block volume is bound to a file there.
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
	v, err := p.Volume(ctx, i.LV)
	if err != nil {
		return err
	}
	if why := use.mismatch(v); why != "" {
		return precondition("volume %s: %s", i, why)
	}
	if v.Foreign {
		if err := mayUse(ctx, p, i, staging); err != nil {
			return err
		}
	}
	v, path, err := d.activate(ctx, p, v, i, use)
	if err != nil {
		return err
	}
	if err := d.dismiss(ctx, i, staging, path); err != nil {
		return err
	}
	if err := os.MkdirAll(staging, 0o750); err != nil {
		return err
	}
	// From here on the caller's patience does not matter: a mkfs that is killed
	// at every deadline would never end.
	ctx = context.WithoutCancel(ctx)
	if v.Mode == pool.Block {
		err = stageBlock(path, blockFile(staging, i), use.mountReadOnly(v))
	} else {
		device := filesystem.Device{Path: path, Type: v.FSType, ReadOnly: v.ReadOnly, Copy: v.Copied}
		err = d.stageFilesystem(ctx, p, v, i, device, staging, use)
	}
	return err
}

// dismiss unmounts a volume from its staging path if its file system does not work
// any more since an error: mounting it anew is what mends it. FAILED_PRECONDITION
// while somebody else has it.
func (d *Driver) dismiss(ctx context.Context, i handle.ID, staging, device string) error {
	m, err := filesystem.MountAt(staging)
	if m == nil || err != nil {
		return err
	}
	broken := filesystem.Writable(m)
	if broken == nil {
		return nil
	}
	if own, err := filesystem.MountedFrom(m, device); !own || err != nil {
		return err // what is mounted there is said later
	}
	others, err := d.otherMounts(m)
	if err != nil {
		return err
	}
	if len(others) > 0 {
		return precondition("volume %s: %v; stop the pods that use it: it can be mounted again only when it is no longer mounted at %v", i, broken, others)
	}
	klog.FromContext(ctx).Info("Mounting a file system again", "mounted", staging, "reason", broken.Error())
	return filesystem.Unmount(staging)
}

// staged checks a mount that is at the staging path already. ALREADY_EXISTS if
// it is not what is asked for.
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

// createFile makes the empty file that a device node is bound to.
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
	grow := done // an earlier call may have been cut off before
	if !done {
		if err := prepare(ctx, p, v, device); err != nil {
			return err
		}
		if err := recoverShown(ctx, p, v, i, device); err != nil {
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
		d.grow(ctx, i, device, staging) // health tells what failed: the content is there
	}
	return nil
}

// grow extends a mounted file system to the end of its device, and notes for the
// volume's health if that fails.
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

// mayUse refuses a logical volume of LVM2's own that no static volume may name, or
// that the host itself uses: its device is open, and not because it is staged.
func mayUse(ctx context.Context, p *pool.Pool, i handle.ID, staging string) error {
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

// foundType returns the type of the file system on a volume of which it is not on
// record: a logical volume of LVM2's own, or one that was a block device. None is
// ever made there: nobody has said that there was none. Swap is refused, also as a
// block volume: the host may use it.
func foundType(ctx context.Context, v pool.Volume, device string) (string, error) {
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

// prepare sees to it that the device has the volume's file system. One is made
// only if the volume's own record says that there never was one, and the record
// is changed before anybody can write: nothing that was used is ever formatted.
//
// A file system on record needs its superblock only. A probe also finds what its
// users wrote to the end of the device, and what lay there before it grew.
func prepare(ctx context.Context, p *pool.Pool, v pool.Volume, device filesystem.Device) error {
	if v.Formatted && !v.Foreign {
		return onRecord(ctx, v, device)
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
	// One of the right type that is not on record is what an interrupted call
	// left, perhaps unfinished.
	klog.FromContext(ctx).Info("Making a file system", "device", device.Path, "type", device.Type)
	if err := filesystem.Format(ctx, device.Path, device.Type); err != nil {
		return err
	}
	return p.SetFormatted(ctx, v.LV)
}

// onRecord refuses a volume that had a file system, or was copied from something,
// and has no superblock of it.
func onRecord(ctx context.Context, v pool.Volume, device filesystem.Device) error {
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

// NodeUnstageVolume undoes NodeStageVolume, and what of it there is. The device stays
// while the volume is staged at another path. If the pool is not open, the mounts go
// and the device stays: UNAVAILABLE.
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
		if err := d.letGo(ctx, i, at); err != nil {
			return nil, err
		}
	}
	d.notGrown.Delete(i.String()) // the next stage tries again
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
	if len(left) == 0 { // else it is staged at another path: the device goes with the last
		err = p.Deactivate(ctx, i.LV)
	}
	if err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}
