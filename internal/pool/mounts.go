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

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// mountPoint returns a mount point of the file system on dev in this process's mount
// namespace; "" if there is none.
func mountPoint(dev dm.Device) (string, error) {
	found, err := mountsOf(dev)
	if err != nil || len(found) == 0 {
		return "", err
	}
	return found[0].Mountpoint, nil
}

// mountedReadOnly reports whether the file system on dev is mounted in this process's mount
// namespace and is read-only.
func mountedReadOnly(dev dm.Device) (bool, error) {
	found, err := mountsOf(dev)
	if err != nil || len(found) == 0 {
		return false, err
	}
	// VFSOptions are the options of the file system. A single mount may be read-only alone.
	return hasOption(found[0].VFSOptions, "ro"), nil
}

func hasOption(options, o string) bool { return slices.Contains(strings.Split(options, ","), o) }

func mountsOf(dev dm.Device) ([]*mountinfo.Info, error) {
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		own := m.Major == int(dev.Major) && m.Minor == int(dev.Minor)
		if m.FSType == "btrfs" { // btrfs mounts have device numbers of their own
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

// boundNode returns a path to which the device node of dev is bind-mounted, as for a pod
// with a raw block volume; "" if this process sees none.
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

// syncBefore writes back a volume's file system before a cut. The caller holds neither
// LVM2's lock nor a key, because the write-back may take long. syncBefore does nothing if
// the volume is suspended, because the call would never return. Errors: ErrPrecondition if
// the file system refuses all I/O, so that no cut freezes the volume in vain.
func (p *Pool) syncBefore(ctx context.Context, lv string) error {
	v, err := p.latest()
	if err != nil {
		return nil
	}
	o := v.VolumeByLV(lv)
	if o == nil {
		return nil
	}
	info, err := p.find(v.topDevice(o.LV))
	if err != nil || info == nil || !info.Live || info.Suspended {
		return nil
	}
	// If the pool becomes full, writers may be held until other operations with the
	// volume's key end. The goroutine lets the caller leave.
	done := make(chan error, 1)
	go func() {
		err := p.stillFails(o, info.Device)
		if err == nil {
			if err = syncMounted(ctx, info.Device); errors.Is(err, filesystem.ErrUnreachable) {
				p.facts.failing.put(o.LV.ID, err)
				err = cmp.Or(p.stillFails(o, info.Device), err)
			} else {
				err = nil // the writer gets the error of a single failed write
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

// stillFails checks the file system of o on dev again if an earlier freeze failed. A freeze
// that can only fail again would hold the writers for nothing.
func (p *Pool) stillFails(o *catalog.Volume, dev dm.Device) error {
	if !p.facts.failing.has(o.LV.ID) {
		return nil
	}
	mounts, err := mountsOf(dev)
	if err != nil || len(mounts) == 0 {
		p.facts.failing.drop(o.LV.ID)
		return err
	}
	err = filesystem.Writable(mounts[0])
	if err == nil || filesystem.Reachable(mounts[0]) != nil { // the failure is over, or every user sees it now
		p.facts.failing.drop(o.LV.ID)
	} else {
		p.facts.failing.put(o.LV.ID, err)
	}
	if hasOption(mounts[0].VFSOptions, "ro") {
		return nil // the kernel can freeze a read-only file system without writing
	}
	return err
}

// uncuttable returns ErrPrecondition if err shows that the file system of o refuses I/O.
// The kernel can then neither freeze the file system nor write back its dirty data.
func (v *view) uncuttable(o *catalog.Volume, err error) error {
	if !errors.Is(err, filesystem.ErrUnreachable) && !errors.Is(err, filesystem.ErrReadOnly) && !errors.Is(err, unix.EIO) {
		return nil
	}
	return fmt.Errorf("volume %s/%s: %w: no snapshot can be taken while its file system refuses I/O: %w; stop all pods that use it, and it is mounted again",
		v.VG.Name, o.LV.Name, ErrPrecondition, err)
}

// syncMounted writes back the file system on dev, if it is mounted, so that the following
// freeze is short. For btrfs the write-back is essential: a suspend of the device does not
// freeze btrfs, so a snapshot has the data written back here, and a consistent part of
// the later writes. Errors: those of filesystem.WriteBack.
func syncMounted(ctx context.Context, dev dm.Device) error {
	at, err := mountPoint(dev)
	if err == nil && at != "" {
		err = filesystem.WriteBack(at)
	}
	if err != nil && !errors.Is(err, filesystem.ErrUnreachable) { // the caller reports ErrUnreachable
		klog.FromContext(ctx).Error(err, "Failed to write back the file system before the cut", "device", dev.String())
	}
	return err
}

// failingHealth returns the condition of a file system that could not be frozen. Without it
// only writers would see that the file system fails.
func (p *Pool) failingHealth(o *catalog.Volume) []Condition {
	why, failed := p.facts.failing.get(o.LV.ID)
	if !failed {
		return nil
	}
	reason := "FilesystemUnreachable"
	if errors.Is(why, filesystem.ErrReadOnly) {
		reason = "FilesystemReadOnly"
	}
	return []Condition{{Inaccessible, reason, fmt.Sprintf("%v; stop the pods that use it, and the next stage mounts it again", why)}}
}
