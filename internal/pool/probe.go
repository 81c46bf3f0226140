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
	// probeLimit is how long the kernel may take to say that a file system is
	// frozen. One that is not waits for the device, which is suspended.
	probeLimit = time.Second
	// probedLimit is how long a freeze that a process has left behind may take once
	// the device goes on. While the device is suspended no time passes.
	probedLimit = 2 * time.Second
	probedLook  = 100 * time.Millisecond
)

// hooked suspends the device of a file system that is frozen already, mounted at
// dir. It says whether it was frozen until then: from that moment on nothing
// reaches the device, whatever becomes of the freeze.
func (f *frozen) hooked(ctx context.Context, dir string) (bool, error) {
	root, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	if err := f.suspendIn(ctx, dm.SuspendOptions{SkipLockFS: true}); err != nil {
		return false, errors.Join(err, root.Close())
	}
	forget, err := f.pool.noteProbe(f.volume.lv.Name)
	if err != nil {
		return false, errors.Join(err, root.Close(), f.pool.dm.Resume(f.device.name, f.device.udev))
	}
	var answer error
	ended := f.pool.apart(func() {
		defer root.Close()
		defer forget()
		if answer = unix.IoctlSetInt(int(root.Fd()), fsFreeze, 0); answer == nil {
			if err := unix.IoctlSetInt(int(root.Fd()), fsThaw, 0); err != nil {
				klog.FromContext(ctx).Error(err, "Thawing a file system; thaw it with fsfreeze -u", "mounted", dir)
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
	if err := f.pool.dm.Resume(f.device.name, f.device.udev); err != nil {
		return false, err
	}
	select {
	case <-ended:
	case <-time.After(freezeLimit):
		return false, &stuckFreeze{f.tooLong(), ended}
	}
	if answer == nil || errors.Is(answer, unix.EBUSY) { // it was frozen, or again, only afterwards
		return false, nil
	}
	return false, fmt.Errorf("freezing the file system at %s: %w", dir, answer)
}

// noteProbe notes, beside the pool's lock, that a volume's file system is asked for
// whether it is frozen. The note is there as long as the call may end in a freeze of
// ours. A process that is killed meanwhile leaves that call in the kernel, which
// freezes the file system once the device goes on: whoever opens the pool next thaws
// it. Both end with the machine.
func (p *Pool) noteProbe(lv string) (forget func(), err error) {
	path := p.probeNote(lv)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return func() {
		if err := os.Remove(path); err != nil {
			p.log.Error(err, "A note stays, for which a frozen file system is thawed when the pool is opened", "path", path)
		}
	}, f.Close()
}

func (p *Pool) probeNote(lv string) string {
	return filepath.Join(p.runDir, p.vgName+probeInfix+lv)
}

const probeInfix = ".probe."

// thawProbed thaws, in the background, the file systems that a former process was
// asking for when it was killed.
func (p *Pool) thawProbed() {
	notes, err := filepath.Glob(p.probeNote("*"))
	if err != nil {
		p.log.Error(err, "Looking for file systems that are left frozen")
	}
	for _, path := range notes {
		lv := strings.TrimPrefix(filepath.Base(path), p.vgName+probeInfix)
		p.background(func(ctx context.Context) {
			thawed, err := p.thawLeft(ctx, lv)
			if ctx.Err() != nil {
				return // the next process tries it
			}
			if err != nil {
				p.log.Error(err, "A file system may be frozen, thaw it with fsfreeze -u", "volume", lv)
			}
			if thawed {
				p.log.Info("Thawed a file system that a former process has left frozen", "volume", lv)
			}
			if err := os.Remove(path); err != nil {
				p.log.Error(err, "Forgetting that a file system was asked for")
			}
		})
	}
}

// thawLeft thaws the file system on a volume once its device goes on, if it is
// frozen or becomes so.
func (p *Pool) thawLeft(ctx context.Context, lv string) (thawed bool, err error) {
	for left := probedLimit; left > 0; {
		v := p.current.Load()
		o := v.volumeByLV(lv)
		if o == nil {
			return false, nil
		}
		info, err := p.find(v.topDevice(o.lv))
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
