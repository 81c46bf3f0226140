package driver

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/pool"
)

// NodePublishVolume binds a staged volume to a target path.
func (d *Driver) NodePublishVolume(ctx context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if r.GetVolumeId() == "" || r.GetTargetPath() == "" {
		return nil, invalid("a volume id and a target path are needed")
	}
	use, err := parseUsage(r.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	if r.GetStagingTargetPath() == "" {
		return nil, precondition("no staging target path is given: stage the volume first")
	}
	p, i, err := d.locate(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	target, err := d.ownPath(r.GetTargetPath())
	if err != nil {
		return nil, err
	}
	source, err := d.ownPath(r.GetStagingTargetPath())
	if err != nil {
		return nil, err
	}
	v, err := p.Volume(ctx, i.LV)
	if err != nil {
		return nil, err
	}
	if why := use.mismatch(v); why != "" {
		return nil, precondition("volume %s: %s", i, why)
	}
	if v = use.as(v); v.Mode != use.mode {
		return nil, precondition("volume %s is used as %s, not as %s: stage it as that first", i, v.Mode, use.mode)
	}
	if v.Mode == pool.Block {
		source = blockFile(source, i)
	}
	m, err := filesystem.MountAt(source)
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, precondition("volume %s is not staged at %s", i, r.GetStagingTargetPath())
	}
	device, err := p.Activate(ctx, i.LV) // it is active: this is its path
	if err != nil {
		return nil, err
	}
	if own, err := filesystem.MountedFrom(m, device); err != nil {
		return nil, err
	} else if !own {
		return nil, precondition("%s is a mount of something else than volume %s: %s %s", source, i, m.Source, m.Root)
	}

	readOnly := r.GetReadonly() || use.mountReadOnly(v)
	// The orchestrator stages a volume anew that is not ready to be published.
	if err := filesystem.Writable(m); err != nil && !(readOnly && errors.Is(err, filesystem.ErrReadOnly)) {
		return nil, precondition("volume %s must be staged anew: %v", i, err)
	}
	present, err := filesystem.MountAt(target)
	if err != nil {
		return nil, err
	}
	if present != nil {
		if !filesystem.SameContent(present, m) || filesystem.HasOption(present, "ro") != readOnly {
			return nil, conflict("%s is a mount already, of %s %s with the options %s", target, present.Source, present.Root, present.Options)
		}
		if err := filesystem.InEffect(present, use.mountFlags); err != nil {
			return nil, conflict("the volume is published with other options: %v", err)
		}
		if v.Mode == pool.Block {
			err = d.protect(m, i) // an earlier call may have been cut off before
		}
		return &csi.NodePublishVolumeResponse{}, err
	}
	if use.singleWriter {
		others, err := d.publishedAt(m, i, target)
		if err != nil {
			return nil, err
		}
		if len(others) > 0 {
			return nil, precondition("volume %s has one writer only and is published at %v", i, others)
		}
	}
	if v.Mode == pool.Block {
		if err := d.protect(m, i, access{readOnly}); err != nil {
			return nil, err
		}
	}
	if err := publish(source, target, v.Mode, readOnly, use.mountFlags); err != nil {
		if v.Mode == pool.Block {
			err = errors.Join(err, d.protect(m, i))
		}
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// publish makes the target and binds source to it.
func publish(source, target string, mode pool.Mode, readOnly bool, flags []string) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	var err error
	if mode == pool.Block {
		err = createFile(target)
	} else {
		err = os.Mkdir(target, 0o750)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := filesystem.Bind(source, target, readOnly, flags); err != nil {
		return errors.Join(err, os.Remove(target))
	}
	m, err := filesystem.MountAt(target)
	if err == nil && m != nil {
		err = filesystem.InEffect(m, flags)
	}
	if err != nil {
		return errors.Join(err, filesystem.Unmount(target), os.Remove(target))
	}
	return nil
}

// NodeUnpublishVolume removes a target path and what is mounted there. The
// volume itself may be gone, or its pool not open.
func (d *Driver) NodeUnpublishVolume(_ context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if r.GetVolumeId() == "" || r.GetTargetPath() == "" {
		return nil, invalid("a volume id and a target path are needed")
	}
	i, err := d.parse(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	target, err := d.ownPath(r.GetTargetPath())
	if err != nil {
		return nil, err
	}
	if err := filesystem.UnmountAll(target); err != nil {
		return nil, err
	}
	// Only what publish made: a directory with something in it stays.
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := d.protectAll(&i); err != nil { // it may have been the last writer
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}
