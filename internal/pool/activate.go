package pool

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// Activate makes the volume's device and returns its path. The device is read-only if the
// volume is. The device of an active volume stays as it is. If the volume's extents may hold
// an earlier owner's bytes, Activate first zeroes a block volume; it returns *PendingError
// when ctx ends, and the work continues. For a file system that is yet to be made, it zeroes
// the extents with the first and the last MiB, so that no program finds an old signature. For a
// logical volume of LVM2's own, Activate uses an active device as it is, or makes the device
// as LVM2 does, and zeroes nothing.
func (p *Pool) Activate(ctx context.Context, lv string) (string, error) {
	// The root of the volume's family determines the key, and a rollback by another process
	// may have changed the root.
	if err := p.refresh(ctx); err != nil {
		return "", err
	}
	if err := p.startOver(ctx, lv); err != nil {
		return "", err
	}
	if err := p.scrub(ctx, lv); err != nil {
		return "", err
	}
	if err := p.flattenBelow(ctx, lv); err != nil {
		return "", fmt.Errorf("activate volume %s: %w", lv, err)
	}
	return run(ctx, &p.group, []string{lvKey(lv)}, func(ctx context.Context) (path string, err error) {
		transient, lost := false, false
		err = p.do(ctx, &change{what: "activate volume " + lv, edit: func(t *edit) error { return t.GivenOut(lv) }, act: func(ctx context.Context, v *view) error {
			if their := v.TheirLV(lv); their != nil {
				path, err = p.activateTheirs(ctx, v, their)
				return err
			}
			o, err := v.Usable(lv)
			if err != nil {
				return err
			}
			if err := v.Presentable(o); err != nil {
				return err
			}
			if transient = o.Transient; transient {
				kept, err := p.scratchKept(ctx, v, o)
				if err != nil {
					return err
				}
				lost = o.Begun && !kept
			}
			if err := p.up(ctx, v, o); err != nil {
				return err
			}
			if o.Forked() {
				p.hydrator.expect(lv)
			}
			path = p.dm.Node(v.topDevice(o.LV).name)
			return nil
		}})
		if err == nil && transient {
			err = p.noteScratch(ctx, lv, lost)
		}
		return path, err
	})
}

// DevicePath returns the path of an active volume's device.
func (p *Pool) DevicePath(lv string) string { return p.dm.Node(lvm2.DMName(p.vgName, lv, "")) }

// Deactivate removes the volume's device; it returns nil if there is none. The device of a
// logical volume of LVM2's own stays: lvchange -an removes it. The device of a transient
// volume stays until the volume is deleted. Errors: ErrInUse if the device is open.
func (p *Pool) Deactivate(ctx context.Context, lv string) error {
	if err := p.waitClosed(ctx, lv); err != nil {
		return err
	}
	if v, err := p.latest(); err != nil {
		return err
	} else if o := v.VolumeByLV(lv); o != nil && o.Transient {
		return p.unnoteScratch(ctx, lv)
	}
	return p.onVolume(ctx, lv, func(ctx context.Context) error {
		if err := p.deactivate(ctx, lv); err != nil {
			return err
		}
		// The volume's device is gone. If the metadata cannot be written now, as while a
		// disk is missing, the caretaker drops the flat stores later.
		if err := p.dropFlats(ctx, lv); err != nil {
			klog.FromContext(ctx).Error(err, "Failed to delete flat stores that nobody reads; it will be retried", "volume", lv)
		}
		return nil
	})
}

func (p *Pool) deactivate(ctx context.Context, lv string) error {
	return p.do(ctx, &change{what: "deactivate volume " + lv, act: func(ctx context.Context, v *view) error {
		if o := v.VolumeByLV(lv); o != nil {
			p.facts.failing.drop(o.LV.ID)
			return p.down(ctx, v, o)
		}
		return nil
	}})
}

// waitClosed waits up to busyLimit until the volume's device is closed, because a scan opens
// every device for a moment. It holds no lock. Errors: ErrInUse.
func (p *Pool) waitClosed(ctx context.Context, lv string) error {
	v, err := p.latest()
	if err != nil {
		return err
	}
	if o := v.VolumeByLV(lv); o != nil {
		return p.awaitClosed(ctx, v, o.LV)
	}
	return nil
}

// awaitClosed is waitClosed for a logical volume of v.
func (p *Pool) awaitClosed(ctx context.Context, v *view, lv *lvm2.LV) error {
	at := v.VG.Name + "/" + lv.Name
	for deadline := time.Now().Add(busyLimit); ; {
		info, err := p.find(v.topDevice(lv))
		if err != nil || info == nil || info.OpenCount == 0 {
			return err
		}
		mounted, err := mountPoint(info.Device)
		if err != nil {
			return err
		}
		if mounted != "" {
			return fmt.Errorf("volume %s: %w: it is mounted at %s", at, ErrInUse, mounted)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("volume %s: %w: its device %s is open %d times: by a process, another device, swap, or a mount that this process does not see",
				at, ErrInUse, info.Name, info.OpenCount)
		}
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// SetFormatted records that the volume has a file system and must never be formatted again.
func (p *Pool) SetFormatted(ctx context.Context, lv string) error {
	return p.onVolume(ctx, lv, func(ctx context.Context) error {
		return p.do(ctx, &change{what: "mark volume " + lv + " as formatted", edit: func(t *edit) error {
			o := t.VolumeByLV(lv)
			if o == nil || o.Deleted {
				return fmt.Errorf("volume %s/%s: %w", t.VG.Name, lv, ErrNotFound)
			}
			if o.Formatted {
				return nil
			}
			return t.SetFormatted(o)
		}})
	})
}
