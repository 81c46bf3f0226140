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

// A volume may be staged at several paths, each of which may be published. The
// mount table tells which is which, so that a new process knows it too: a block
// volume's staging file has its id as name. A file system's staging mount begins a
// peer group, and binding it makes members of that.

// mountsOfContent returns the mounts of what m shows below the kubelet directory,
// besides m and what is mounted at besides.
func (d *Driver) mountsOfContent(m *mountinfo.Info, besides ...string) ([]*mountinfo.Info, error) {
	mounts, err := filesystem.Mounts()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(mounts, func(o *mountinfo.Info) bool {
		return !filesystem.SameContent(m, o) || o.Mountpoint == m.Mountpoint || !d.inside(o.Mountpoint) || slices.Contains(besides, o.Mountpoint)
	}), nil
}

// otherMounts returns the mount points of what m shows, besides m and the
// given ones, below the kubelet directory.
func (d *Driver) otherMounts(m *mountinfo.Info, besides ...string) ([]string, error) {
	others, err := d.mountsOfContent(m, besides...)
	return mountPoints(others), err
}

func mountPoints(mounts []*mountinfo.Info) (at []string) {
	for _, m := range mounts {
		at = append(at, m.Mountpoint)
	}
	return at
}

// isStaging tells whether m is where a block volume is staged.
func isStaging(m *mountinfo.Info, i handle.ID) bool { return filepath.Base(m.Mountpoint) == i.String() }

// publishedFrom returns where the volume that is staged by m is published and needs
// that. A block volume is published as its node, wherever that is staged.
// Mounts without a peer group, which an older version has made, count as published.
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

// publishedAt returns where the volume that is staged by m is published, besides
// target, from wherever it is staged.
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

// mountsFrom returns the mounts of a device's file system, or of its node, below
// the kubelet directory; none if there is no such device.
func (d *Driver) mountsFrom(device string) ([]*mountinfo.Info, error) {
	mounts, err := filesystem.Mounts()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(mounts, func(m *mountinfo.Info) bool {
		node := m.Root != "/" && (m.FSType == "devtmpfs" || m.FSType == "tmpfs")
		if !d.inside(m.Mountpoint) || !node && !filesystem.Supported(m.FSType) { // others may not answer
			return true
		}
		own, err := filesystem.MountedFrom(m, device)
		return err != nil || !own
	}), nil
}

// letGo unmounts a volume from where it is staged. FAILED_PRECONDITION if it is
// published from there.
func (d *Driver) letGo(ctx context.Context, i handle.ID, at string) error {
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
		// One that is frozen would stay so, and keep the device.
		switch thawed, err := p.Thaw(ctx, i.LV, at); {
		case err != nil:
			return err
		case thawed:
			klog.FromContext(ctx).Info("Thawed a file system that was left frozen and has no other mount", "mounted", at)
		}
	}
	return filesystem.UnmountAll(at)
}

// protect makes the device of a block volume, which is staged by m, read-only if it
// is published and to readers only: a bind mount cannot. adding is what is about to
// be published there, if anything.
func (d *Driver) protect(m *mountinfo.Info, i handle.ID, adding ...access) error {
	others, err := d.mountsOfContent(m)
	if err != nil {
		return err
	}
	for _, o := range others {
		if !isStaging(o, i) {
			adding = append(adding, access{readOnly: filesystem.HasOption(o, "ro")})
		}
	}
	writer := slices.Contains(adding, access{readOnly: false})
	return filesystem.SetReadOnly(m.Mountpoint, len(adding) > 0 && !writer)
}

// access is how something is published.
type access struct{ readOnly bool }

// protectAll does so for all block volumes that are staged, or for one.
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
		if err := d.protect(m, i); err != nil {
			errs = append(errs, err) // one that fails leaves none of the others unprotected
		}
	}
	return errors.Join(errs...)
}
