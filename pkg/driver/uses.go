package driver

import (
	"context"
	"errors"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// A volume may be staged at several paths and published from each of them. The
// mount table shows which mounts belong together, so a new process knows it too.
// The staging file of a block volume is named after the volume's id. The staging
// mount of a file system starts a peer group, and its bind mounts join the group.

// mountsOfContent returns the mounts below the kubelet directory that show the
// same content as m, other than m and the mounts at the paths in except.
func (d *Driver) mountsOfContent(m *mountinfo.Info, except ...string) ([]*mountinfo.Info, error) {
	mounts, err := filesystem.Mounts()
	return d.ofContent(mounts, m, except...), err
}

// ofContent is mountsOfContent for a mount table that was read before.
func (d *Driver) ofContent(mounts []*mountinfo.Info, m *mountinfo.Info, except ...string) (of []*mountinfo.Info) {
	for _, o := range mounts {
		if filesystem.SameContent(m, o) && o.Mountpoint != m.Mountpoint && d.inside(o.Mountpoint) && !slices.Contains(except, o.Mountpoint) {
			of = append(of, o)
		}
	}
	return of
}

func mountPoints(mounts []*mountinfo.Info) (at []string) {
	for _, m := range mounts {
		at = append(at, m.Mountpoint)
	}
	return at
}

// isStaging reports whether m is the staging mount of a block volume.
func isStaging(m *mountinfo.Info, i handle.ID) bool { return filepath.Base(m.Mountpoint) == i.String() }

// publishedFrom returns the target paths that need the staging mount m. A
// published block volume needs only one of its staging mounts, because all of
// them show the same device node. If m has no peer group, because an older release
// mounted it, the other mounts without a group count as published from m.
func (d *Driver) publishedFrom(m *mountinfo.Info, i handle.ID) ([]string, error) {
	others, err := d.mountsOfContent(m)
	if isStaging(m, i) {
		if slices.ContainsFunc(others, func(o *mountinfo.Info) bool { return isStaging(o, i) }) {
			others = nil
		}
		return mountPoints(others), err
	}
	group := filesystem.PeerGroup(m)
	return mountPoints(slices.DeleteFunc(others, func(o *mountinfo.Info) bool { return filesystem.PeerGroup(o) != group })), err
}

// publishedAt returns the target paths, other than target, of the volume that is
// staged by m. It counts the targets of all of the volume's staging paths.
func (d *Driver) publishedAt(m *mountinfo.Info, i handle.ID, target string) ([]string, error) {
	others, err := d.mountsOfContent(m, target)
	members := map[string]int{}
	for _, o := range others {
		members[filesystem.PeerGroup(o)]++
	}
	own := filesystem.PeerGroup(m)
	return mountPoints(slices.DeleteFunc(others, func(o *mountinfo.Info) bool {
		group := filesystem.PeerGroup(o)
		alone := group != "" && group != own && members[group] == 1 // another staging path
		return isStaging(o, i) || !isStaging(m, i) && alone
	})), err
}

// mountsFrom returns the mounts below the kubelet directory of a device's file
// system or of its device node; none if the device does not exist.
func (d *Driver) mountsFrom(device string) ([]*mountinfo.Info, error) {
	mounts, err := filesystem.Mounts()
	if err != nil {
		return nil, err
	}
	return filesystem.MountsFrom(slices.DeleteFunc(mounts, func(m *mountinfo.Info) bool {
		node := m.Root != "/" && (m.FSType == "devtmpfs" || m.FSType == "tmpfs")
		return !d.inside(m.Mountpoint) || !node && !filesystem.Supported(m.FSType) // other file systems may not answer
	}), device), nil
}

// unmountStaged unmounts a volume from the staging path at. Errors:
// FAILED_PRECONDITION if the volume is published from there.
func (d *Driver) unmountStaged(ctx context.Context, i handle.ID, at string) error {
	m, err := filesystem.MountAt(at)
	if m == nil || err != nil {
		return err
	}
	published, err := d.publishedFrom(m, i)
	if err != nil {
		return err
	}
	if len(published) > 0 {
		return precondition("volume %s is still published at %v", i, published)
	}
	if others, err := d.mountsOfContent(m); err != nil {
		return err
	} else if p, err := d.pool(i.Pool); len(others) == 0 && err == nil && filesystem.Supported(m.FSType) {
		// A frozen file system would stay frozen after the unmount and keep the device open.
		switch thawed, err := p.Thaw(ctx, i.LV, at); {
		case err != nil:
			return err
		case thawed:
			klog.FromContext(ctx).Info("Thawed a file system that was left frozen and has no other mount", "mounted", at)
		}
	}
	return filesystem.UnmountAll(at)
}

// protect makes the device of a block volume read-only while only readers have
// the volume published, and writable otherwise: a read-only bind mount does not
// protect a device. m is a staging mount of the volume. adding is the access that
// is about to be published, if any.
func (d *Driver) protect(m *mountinfo.Info, i handle.ID, adding ...access) error {
	mounts, err := filesystem.Mounts()
	if err != nil {
		return err
	}
	return d.protectFrom(mounts, m, i, adding...)
}

// protectFrom is protect for a mount table that was read before.
func (d *Driver) protectFrom(mounts []*mountinfo.Info, m *mountinfo.Info, i handle.ID, adding ...access) error {
	for _, o := range d.ofContent(mounts, m) {
		if !isStaging(o, i) {
			adding = append(adding, access{readOnly: filesystem.HasOption(o, "ro")})
		}
	}
	writer := slices.Contains(adding, access{readOnly: false})
	return filesystem.SetReadOnly(m.Mountpoint, len(adding) > 0 && !writer)
}

// access is how a volume is published at a target path.
type access struct{ readOnly bool }

// protectAll calls protect for all staged block volumes, or only for the given
// one.
func (d *Driver) protectAll(only *handle.ID) error {
	mounts, err := filesystem.Mounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		i, is := handle.Parse(filepath.Base(m.Mountpoint))
		if !is || !d.inside(m.Mountpoint) || only != nil && i != *only {
			continue
		}
		if err := d.protectFrom(mounts, m, i); err != nil {
			errs = append(errs, err) // the other volumes are still protected
		}
	}
	return errors.Join(errs...)
}
