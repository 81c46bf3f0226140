package pool

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

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

// mountedReadOnly tells whether the file system on dev is mounted, as far as
// this process sees, and nobody can write to it.
func mountedReadOnly(dev dm.Device) (bool, error) {
	found, err := mountsOf(dev)
	if err != nil || len(found) == 0 {
		return false, err
	}
	// Of the file system itself; one mount of several may be read-only for itself.
	return slices.Contains(strings.Split(found[0].VFSOptions, ","), "ro"), nil
}

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
// nor key is held: it may take long. A suspended volume would never answer.
func (p *Pool) syncBefore(ctx context.Context, lv string) {
	v, err := p.latest()
	if err != nil {
		return
	}
	if o := v.volumeByLV(lv); o != nil {
		if info, err := p.find(p.device(v, o.lv, "", udevVisible)); err == nil && info != nil && info.Live && !info.Suspended {
			// If the pool is full meanwhile, writers may be held until others
			// that need the volume's key are done: the caller can leave.
			done := make(chan struct{})
			go func() {
				defer close(done)
				syncMounted(ctx, info.Device)
			}()
			select {
			case <-done:
			case <-ctx.Done():
			}
		}
	}
}

// syncMounted writes back the file system on dev, if it is mounted, so that the
// freeze that follows has little left to do. For btrfs it is more than that:
// suspending its device does not freeze it, so what a snapshot of it has is
// what this wrote, and a consistent part of what came after.
func syncMounted(ctx context.Context, dev dm.Device) {
	at, err := mountPoint(dev)
	if err == nil && at != "" {
		err = syncfs(at)
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "The file system was not written back before the cut", "device", dev.String())
	}
}

func syncfs(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}
