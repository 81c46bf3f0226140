package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

const (
	// probeLimit bounds how long the kernel may take to answer that a file system is
	// frozen. For any other file system the call waits for the suspended device.
	probeLimit = time.Second
	// probedLimit bounds how long a freeze call of a killed process may take after the
	// device is resumed. Time with a suspended device does not count.
	probedLimit = 2 * time.Second
	probedLook  = 100 * time.Millisecond
)

// hooked suspends the device of a file system, mounted at dir, that its owner has frozen. It
// reports whether the file system was still frozen when the device was suspended. From
// this moment no write reaches the device, even if the owner thaws the file system.
func (f *frozen) hooked(ctx context.Context, dir string) (bool, error) {
	root, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	if err := f.suspendIn(ctx, dm.SuspendOptions{SkipLockFS: true}); err != nil {
		return false, errors.Join(err, root.Close())
	}
	forget, err := f.pool.noteProbe(f.volume.LV.Name)
	if err != nil {
		return false, errors.Join(err, root.Close(), f.asWas())
	}
	var answer error
	ended := f.pool.apart(func() {
		defer root.Close()
		defer forget()
		if answer = unix.IoctlSetInt(int(root.Fd()), fsFreeze, 0); answer == nil {
			if err := unix.IoctlSetInt(int(root.Fd()), fsThaw, 0); err != nil {
				klog.FromContext(ctx).Error(err, "Failed to thaw a file system; thaw it with fsfreeze -u", "mounted", dir)
			}
		}
	})
	select {
	case <-ended:
		if errors.Is(answer, unix.EBUSY) {
			return true, nil
		}
	case <-time.After(probeLimit): // it waits for the device
	}
	if err := f.asWas(); err != nil {
		return false, err
	}
	select {
	case <-ended:
	case <-time.After(freezeLimit):
		return false, &stuckFreeze{f.tooLong(), ended}
	}
	if answer == nil || errors.Is(answer, unix.EBUSY) { // it was not frozen, or only after the resume
		return false, nil
	}
	return false, fmt.Errorf("freezing the file system at %s: %w", dir, answer)
}

// noteProbe writes a note, next to the pool's lock file, that the driver probes whether a
// volume's file system is frozen. The note exists as long as the call may end in a freeze
// by the driver. If the process is killed, the call remains in the kernel and freezes the
// file system when the device is resumed. The next process that opens the pool then thaws
// the file system. A reboot ends both the call and the note.
func (p *Pool) noteProbe(lv string) (forget func(), err error) {
	path := p.probeNote(lv)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return func() {
		if err := os.Remove(path); err != nil {
			p.log.Error(err, "Failed to remove the note of a freeze; if the file system is frozen when the pool is opened, it will be thawed", "path", path)
		}
	}, f.Close()
}

func (p *Pool) probeNote(lv string) string {
	return filepath.Join(p.runDir, p.vgName+probeInfix+lv)
}

const probeInfix = ".probe."

// thawProbed thaws, in the background, the file systems that a former process was probing
// when it was killed.
func (p *Pool) thawProbed() {
	notes, err := filepath.Glob(p.probeNote("*"))
	if err != nil {
		p.log.Error(err, "Failed to look for file systems that were left frozen")
	}
	for _, path := range notes {
		lv := strings.TrimPrefix(filepath.Base(path), p.vgName+probeInfix)
		p.background(func(ctx context.Context) {
			thawed, err := p.thawLeft(ctx, lv)
			if ctx.Err() != nil {
				return // the next process retries
			}
			if err != nil {
				p.log.Error(err, "A file system may be frozen; thaw it with fsfreeze -u", "volume", lv)
			}
			if thawed {
				p.log.Info("Thawed a file system that a former process left frozen", "volume", lv)
			}
			if err := os.Remove(path); err != nil {
				p.log.Error(err, "Failed to remove the note of a freeze")
			}
		})
	}
}

// thawLeft waits until the volume's device is resumed, and then thaws the file system if it
// is frozen, or becomes frozen within probedLimit.
func (p *Pool) thawLeft(ctx context.Context, lv string) (thawed bool, err error) {
	for left := probedLimit; left > 0; {
		v := p.current.Load()
		o := v.VolumeByLV(lv)
		if o == nil {
			return false, nil
		}
		info, err := p.find(v.topDevice(o.LV))
		if err != nil || info == nil {
			return false, err
		}
		if !info.Suspended {
			left -= probedLook
			at, err := mountPoint(info.Device)
			if err != nil || at == "" {
				return false, err
			}
			if thawed, err := p.Thaw(ctx, lv, at); thawed || err != nil {
				return thawed, err
			}
		}
		select {
		case <-time.After(probedLook):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
	return false, nil
}
