package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// mountPoint returns where the file system on dev is mounted, as far as this
// process sees; "" if it is not.
func mountPoint(dev dm.Device) (string, error) {
	found, err := mountsOf(dev)
	if err != nil || len(found) == 0 {
		return "", err
	}
	return found[0].Mountpoint, nil
}

// mountedReadOnly reports whether the file system on dev is mounted, as far as
// this process sees, and nobody can write to it.
func mountedReadOnly(dev dm.Device) (bool, error) {
	found, err := mountsOf(dev)
	if err != nil || len(found) == 0 {
		return false, err
	}
	// Of the file system itself; one mount of several may be read-only for itself.
	return hasOption(found[0].VFSOptions, "ro"), nil
}

func hasOption(options, o string) bool { return slices.Contains(strings.Split(options, ","), o) }

func mountsOf(dev dm.Device) ([]*mountinfo.Info, error) {
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		own := m.Major == int(dev.Major) && m.Minor == int(dev.Minor)
		if m.FSType == "btrfs" { // its mounts have device numbers of their own
			source, err := dm.DeviceOf(m.Source)
			own = err == nil && source == dev
		}
		return !own, own
	})
	if err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	return found, nil
}

// boundNode returns where the node of dev is bound, as it is for a pod that has
// the volume as a raw block device; "" if nowhere, as far as this process sees.
func boundNode(dev dm.Device) (string, error) {
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		if m.Root == "/" || m.FSType != "devtmpfs" && m.FSType != "tmpfs" {
			return true, false
		}
		at, err := dm.DeviceOf(m.Mountpoint)
		own := err == nil && at == dev
		return !own, own
	})
	if err != nil {
		return "", fmt.Errorf("reading the mount table: %w", err)
	}
	if len(found) == 0 {
		return "", nil
	}
	return found[0].Mountpoint, nil
}

// syncBefore writes back a volume's file system before a cut. No lock of LVM2's
// nor key is held: it may take long. A suspended volume would never answer. One
// that refuses all I/O is refused here, before anybody is held for it:
// ErrPrecondition.
func (p *Pool) syncBefore(ctx context.Context, lv string) error {
	v, err := p.latest()
	if err != nil {
		return nil
	}
	o := v.volumeByLV(lv)
	if o == nil {
		return nil
	}
	info, err := p.find(v.topDevice(o.lv))
	if err != nil || info == nil || !info.Live || info.Suspended {
		return nil
	}
	// If the pool is full meanwhile, writers may be held until others
	// that need the volume's key are done: the caller can leave.
	done := make(chan error, 1)
	go func() {
		err := p.stillFails(o, info.Device)
		if err == nil {
			if err = syncMounted(ctx, info.Device); errors.Is(err, filesystem.ErrUnreachable) {
				p.facts.failing.put(o.lv.ID, err)
				err = cmp.Or(p.stillFails(o, info.Device), err)
			} else {
				err = nil // a write that failed once is its writer's to know
			}
		}
		done <- err
	}()
	select {
	case err = <-done:
		return v.uncuttable(o, err)
	case <-ctx.Done():
		return nil
	}
}

// stillFails looks again at the file system on o, which is on dev, if it could not be
// frozen before: nobody is held once more for what can only fail.
func (p *Pool) stillFails(o *volume, dev dm.Device) error {
	if !p.facts.failing.has(o.lv.ID) {
		return nil
	}
	mounts, err := mountsOf(dev)
	if err != nil || len(mounts) == 0 {
		p.facts.failing.drop(o.lv.ID)
		return err
	}
	err = filesystem.Writable(mounts[0])
	if err == nil || filesystem.Reachable(mounts[0]) != nil { // everybody sees it now
		p.facts.failing.drop(o.lv.ID)
	} else {
		p.facts.failing.put(o.lv.ID, err)
	}
	if hasOption(mounts[0].VFSOptions, "ro") {
		return nil // by now the kernel freezes it without writing
	}
	return err
}

// uncuttable returns ErrPrecondition if err says that the file system on o refuses
// I/O: the kernel can neither freeze it nor write back what it holds.
func (v *view) uncuttable(o *volume, err error) error {
	if !errors.Is(err, filesystem.ErrUnreachable) && !errors.Is(err, filesystem.ErrReadOnly) && !errors.Is(err, unix.EIO) {
		return nil
	}
	return fmt.Errorf("volume %s/%s: %w: it is not cut while its file system refuses I/O: %w; end all pods that use it, then it is mounted anew",
		v.vg.Name, o.lv.Name, ErrPrecondition, err)
}

// syncMounted writes back the file system on dev, if it is mounted, so that the
// freeze that follows has little left to do. For btrfs it is more than that:
// suspending its device does not freeze it, so what a snapshot of it has is
// what this wrote, and a consistent part of what came after. Errors: those of
// filesystem.WriteBack.
func syncMounted(ctx context.Context, dev dm.Device) error {
	at, err := mountPoint(dev)
	if err == nil && at != "" {
		err = filesystem.WriteBack(at)
	}
	if err != nil && !errors.Is(err, filesystem.ErrUnreachable) { // that the caller says
		klog.FromContext(ctx).Error(err, "The file system was not written back before the cut", "device", dev.String())
	}
	return err
}

// failingHealth tells of a file system that could not be frozen, where the kernel
// shows only to who writes that it fails.
func (p *Pool) failingHealth(o *volume) []Condition {
	why, failed := p.facts.failing.get(o.lv.ID)
	if !failed {
		return nil
	}
	reason := "FilesystemUnreachable"
	if errors.Is(why, filesystem.ErrReadOnly) {
		reason = "FilesystemReadOnly"
	}
	return []Condition{{Inaccessible, reason, fmt.Sprintf("%v; end the pods that use it, the next stage mounts it anew", why)}}
}
