package driver

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/moby/sys/mountinfo"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// NodePublishVolume binds a staged volume to a target path. Errors:
// INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS if another mount is at the target,
// FAILED_PRECONDITION if the volume is not staged there, must be staged again, or
// allows only one writer and has one; UNAVAILABLE if the pool is not open.
func (d *Driver) NodePublishVolume(ctx context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if r.GetVolumeId() == "" || r.GetTargetPath() == "" {
		return nil, invalid("a volume id and a target path are required")
	}
	use, err := parseUsage(r.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	if r.GetStagingTargetPath() == "" {
		return nil, precondition("no staging target path is given; stage the volume first")
	}
	s, err := d.staged(ctx, r, use)
	if err != nil {
		return nil, err
	}
	readOnly := r.GetReadonly() || use.mountReadOnly(s.volume)
	// After FAILED_PRECONDITION the orchestrator stages the volume again.
	if err := filesystem.Writable(s.mount); err != nil && !(readOnly && errors.Is(err, filesystem.ErrReadOnly)) {
		return nil, precondition("volume %s must be staged again: %v", s.id, err)
	}
	present, err := filesystem.MountAt(s.target)
	if err != nil {
		return nil, err
	}
	if present != nil {
		if err := d.publishedAlready(s, present, readOnly, use); err != nil {
			return nil, err
		}
		return &csi.NodePublishVolumeResponse{}, nil
	}
	if use.singleWriter {
		others, err := d.publishedAt(s.mount, s.id, s.target)
		if err != nil {
			return nil, err
		}
		if len(others) > 0 {
			return nil, precondition("volume %s allows only one writer and is already published at %v", s.id, others)
		}
	}
	if s.volume.Mode == pool.Block {
		if err := d.protect(s.mount, s.id, access{readOnly}); err != nil {
			return nil, err
		}
	}
	if err := publish(s.source, s.target, s.volume.Mode, readOnly, use.mountFlags); err != nil {
		if s.volume.Mode == pool.Block {
			err = errors.Join(err, d.protect(s.mount, s.id))
		}
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// staging is a staged volume that a request is about to publish.
type staging struct {
	id     handle.ID
	volume pool.Volume     // as the request uses it
	source string          // the mount to bind: the staging path, or the file in it
	target string          // where to bind it
	mount  *mountinfo.Info // the mount at source
}

// staged finds the volume of a request and its mount at the staging path.
// Errors: INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION, UNAVAILABLE.
func (d *Driver) staged(ctx context.Context, r *csi.NodePublishVolumeRequest, use usage) (s staging, err error) {
	p, i, err := d.locate(r.GetVolumeId())
	if err != nil {
		return s, err
	}
	s.id = i
	if s.target, err = d.ownPath(r.GetTargetPath()); err != nil {
		return s, err
	}
	if s.source, err = d.ownPath(r.GetStagingTargetPath()); err != nil {
		return s, err
	}
	if s.volume, err = volumeFor(ctx, p, i, use); err != nil {
		return s, err
	}
	if s.volume = use.as(s.volume); s.volume.Mode != use.mode {
		return s, precondition("volume %s is used as %s, not as %s; stage it as %s first", i, s.volume.Mode, use.mode, use.mode)
	}
	if s.volume.Mode == pool.Block {
		s.source = blockFile(s.source, i)
	}
	if s.mount, err = filesystem.MountAt(s.source); err != nil {
		return s, err
	}
	if s.mount == nil {
		return s, precondition("volume %s is not staged at %s", i, r.GetStagingTargetPath())
	}
	device, err := p.Activate(ctx, i.LV) // the volume is active already: Activate returns its path
	if err != nil {
		return s, err
	}
	if own, err := filesystem.MountedFrom(s.mount, device); err != nil {
		return s, err
	} else if !own {
		return s, precondition("%s is not a mount of volume %s but of %s %s", s.source, i, s.mount.Source, s.mount.Root)
	}
	return s, nil
}

// publishedAlready checks the mount that is already at the target of a request.
// Errors: ALREADY_EXISTS if it differs from the request.
func (d *Driver) publishedAlready(s staging, present *mountinfo.Info, readOnly bool, use usage) error {
	if !filesystem.SameContent(present, s.mount) || filesystem.HasOption(present, "ro") != readOnly {
		return conflict("%s is already a mount of %s %s with the options %s", s.target, present.Source, present.Root, present.Options)
	}
	if err := filesystem.InEffect(present, use.mountFlags); err != nil {
		return conflict("the volume is already published with other options: %v", err)
	}
	if s.volume.Mode == pool.Block {
		return d.protect(s.mount, s.id) // an earlier call may have been interrupted before it
	}
	return nil
}

// publish creates the target and binds source to it. After an error nothing is
// left at the target.
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

// NodeUnpublishVolume unmounts and removes a target path. The volume need not
// exist, and its pool need not be open. Errors: INVALID_ARGUMENT, NOT_FOUND,
// FAILED_PRECONDITION if the mount is busy.
func (d *Driver) NodeUnpublishVolume(_ context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if r.GetVolumeId() == "" || r.GetTargetPath() == "" {
		return nil, invalid("a volume id and a target path are required")
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
	// os.Remove fails for a directory that is not empty, which publish cannot
	// have left.
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := d.protectAll(&i); err != nil { // the target may have been the last writer's
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}
