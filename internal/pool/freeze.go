package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// The ioctls FIFREEZE and FITHAW freeze and thaw a mounted file system.
const (
	fsFreeze = 0xc0045877
	fsThaw   = 0xc0045878
)

const (
	// freezeLimit bounds how long a volume may take to freeze for a cut. A file
	// system with much dirty data is slow.
	freezeLimit = 10 * time.Second
	// frozenLimit bounds how long a volume stays frozen until its cut in the kernel
	// begins. LVM2's own commands may hold the group's lock.
	frozenLimit = 3 * time.Second
	// lateAnswer bounds how long an interruptible suspend needs to return after
	// its limit.
	lateAnswer  = 500 * time.Millisecond
	freezeTries = 3 // attempts if the owner freezes and thaws the file system in between
)

// frozen is a volume that is suspended for a cut, whose layer is on the disk already, until
// the kernel has cut it. A freeze may take any time and cannot be interrupted.
type frozen struct {
	pool   *Pool
	volume *catalog.Volume
	device device
	// clean is set if the file system is frozen, by the driver or by a hook of the
	// owner. The content of the cut then needs no recovery.
	clean bool

	ctx   context.Context // ends if the volume is resumed before the cut
	thaw  context.CancelCauseFunc
	limit *time.Timer
	watch stopwatch

	mu     sync.Mutex
	used   bool      // the cut in the kernel has begun
	passed bool      // the volume was resumed
	at     time.Time // time of the cut in the kernel; zero if there was none
}

// errWentOn: the volume was resumed before the kernel had cut it, for example because a
// fold that has just ended still uses the name of a device. A retry can succeed.
var errWentOn = fmt.Errorf("%w: it was resumed before it was cut", ErrFreeze)

// stuckFreeze is the error of a freeze that still runs in the kernel after its limit. When
// the call returns, the volume is resumed automatically. Until then no operation can use
// the volume.
type stuckFreeze struct {
	err   error
	until <-chan struct{}
}

func (e *stuckFreeze) Error() string { return e.err.Error() }
func (e *stuckFreeze) Unwrap() error { return e.err }

// freeze freezes and suspends a volume for a cut. It returns nil if the volume's device is
// not active, because then nobody can write to the volume. The caller holds the volume's
// key, and must call release on the result.
func (p *Pool) freeze(ctx context.Context, lv string) (*frozen, error) {
	v, err := p.latest()
	if err != nil {
		return nil, err
	}
	o, err := v.Changeable(lv)
	if err != nil {
		return nil, err
	}
	f := &frozen{pool: p, volume: o, device: v.topDevice(o.LV)}
	info, err := p.find(f.device)
	if err != nil || info == nil || !info.Live {
		return nil, err
	}
	if info.Suspended && !p.isHeld(v, o) { // left over from a failed operation
		if err := p.resumeAsWas(info, f.device.udev); err != nil {
			p.facts.unsettled.put(o.LV.ID, true)
			return nil, err
		}
	}
	if err := f.still(ctx, info.Device); err != nil {
		p.facts.unsettled.put(o.LV.ID, true) // a resume may have failed
		if errors.Is(err, unix.EIO) {
			p.facts.failing.put(o.LV.ID, err)
			err = cmp.Or(p.stillFails(o, info.Device), err)
		}
		return nil, cmp.Or(v.uncuttable(o, err), err)
	}
	f.watch.lap("suspend")
	f.ctx, f.thaw = context.WithCancelCause(ctx)
	f.limit = time.AfterFunc(frozenLimit, f.goOn)
	p.facts.frozen.put(o.LV.ID, f)
	if p.facts.holding.has(o.LV.ID) { // the hold suspended the volume without a freeze
		f.release()
		return nil, errHeld(v, o)
	}
	return f, nil
}

// still freezes the file system and suspends the device.
func (f *frozen) still(ctx context.Context, dev dm.Device) error {
	for range freezeTries {
		mounts, err := mountsOf(dev)
		if err != nil {
			return err
		}
		if len(mounts) > 0 && !hasOption(mounts[0].VFSOptions, "ro") { // a read-only file system needs no freeze
			if err := filesystem.Reachable(mounts[0]); err != nil {
				return err
			}
		}
		f.watch.start()
		err = f.suspendIn(ctx, dm.SuspendOptions{})
		if err == nil {
			// A suspend of the device does not freeze btrfs.
			f.clean = len(mounts) > 0 && mounts[0].FSType != "btrfs"
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		// Up to Linux 6.7 a file system can be frozen only once. Here its owner has
		// frozen it.
		if len(mounts) == 0 {
			return fmt.Errorf("volume %s/%s: %w: its file system is frozen at a mount that this process does not see; thaw it", f.pool.vgName, f.volume.LV.Name, ErrPrecondition)
		}
		if f.clean, err = f.hooked(ctx, mounts[0].Mountpoint); err != nil || f.clean {
			return err
		}
	}
	return fmt.Errorf("volume %s/%s: %w: another process keeps freezing and thawing its file system; retry", f.pool.vgName, f.volume.LV.Name, ErrFreeze)
}

// suspendIn suspends the device within freezeLimit. Errors: *stuckFreeze if the suspend
// cannot be interrupted and takes longer; the volume is resumed when the suspend returns.
func (f *frozen) suspendIn(ctx context.Context, o dm.SuspendOptions) error {
	limited, cancel := context.WithTimeout(ctx, freezeLimit)
	var err error
	ended := f.pool.apart(func() {
		defer cancel()
		err = f.pool.dm.Suspend(limited, f.device.name, o)
	})
	select {
	case <-ended:
	case <-limited.Done():
		select {
		case <-ended:
		case <-time.After(lateAnswer):
			return &stuckFreeze{f.tooLong(), ended}
		}
	}
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return f.tooLong()
	}
	return err
}

// apart runs a kernel call that may take any time in a goroutine of its own. The channel
// is closed when do returns.
func (g *group) apart(do func()) <-chan struct{} {
	ended := make(chan struct{})
	g.work.Add(1) // safe: the calling operation is counted already, so Close still waits
	go func() {
		defer g.work.Done()
		defer close(ended)
		do()
	}()
	return ended
}

func (f *frozen) tooLong() error {
	return fmt.Errorf("volume %s/%s: %w: writes to it did not finish within %v; nothing was changed",
		f.pool.vgName, f.volume.LV.Name, ErrFreeze, freezeLimit)
}

// carryOut calls act, which cuts the volume in the kernel and resumes it, if the volume is
// still frozen. It makes the device nodes after act, because udev may be slow or wait for
// the volume itself.
func (f *frozen) carryOut(ctx context.Context, act func(context.Context) error) error {
	f.mu.Lock()
	if f.passed {
		f.mu.Unlock()
		return context.Cause(f.ctx)
	}
	f.used = true
	f.mu.Unlock()
	f.watch.lap("lock")
	var later nodesLater
	err := act(context.WithValue(ctx, nodesKey{}, &later))
	if err != nil {
		f.mu.Lock()
		if !f.passed {
			f.passed = true
			f.thaw(err)
			f.resume()
		}
		f.mu.Unlock()
	}
	errs := []error{err}
	for _, n := range later {
		errs = append(errs, f.pool.node(ctx, n.device, n.number))
	}
	return errors.Join(errs...)
}

// nodesLater collects device nodes that are made after a volume is resumed. The context of
// the cut's act carries it as the value of nodesKey.
type (
	nodesLater []laterNode
	laterNode  struct {
		device device
		number dm.Device
	}
	nodesKey struct{}
)

// noteCut records the time at which the kernel cut the volume.
func (f *frozen) noteCut(at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = at
}

// cutAt returns the time at which the kernel cut the volume. Errors: errWentOn if it did not.
func (f *frozen) cutAt() (time.Time, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.at.IsZero() {
		return f.at, fmt.Errorf("volume %s/%s: %w", f.pool.vgName, f.volume.LV.Name, errWentOn)
	}
	return f.at, nil
}

// goOn resumes the volume unless its cut in the kernel has begun. The timer calls it.
func (f *frozen) goOn() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.used || f.passed {
		return
	}
	f.passed = true
	f.thaw(fmt.Errorf("volume %s/%s: %w: the cut did not begin within %v, as while an lvm2 command holds the volume group; nothing was changed",
		f.pool.vgName, f.volume.LV.Name, ErrFreeze, frozenLimit))
	f.resume()
}

// release resumes the volume in any case, and ends the freeze.
func (f *frozen) release() {
	if f == nil {
		return
	}
	f.limit.Stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.passed {
		f.passed = true
		f.resume()
	}
	f.thaw(nil)
	f.pool.facts.frozen.drop(f.volume.LV.ID)
}

// asWas resumes the volume with its old table. The table that the cut has loaded is for the
// window.
func (f *frozen) asWas() error {
	info, err := f.pool.find(f.device)
	if err != nil {
		return err
	}
	if info == nil {
		return fmt.Errorf("device %s is gone: another process removed it", f.device.name)
	}
	return f.pool.resumeAsWas(info, f.device.udev)
}

// resume resumes the volume with its old table if it is suspended and its writers are not
// held. The table that the cut has loaded may need devices that do not exist yet.
func (f *frozen) resume() {
	info, err := f.pool.find(f.device)
	if held := f.pool.facts.holding.has(f.volume.LV.ID); err == nil && (info == nil || !info.Suspended || held) {
		return
	}
	if err == nil {
		err = f.pool.resumeAsWas(info, f.device.udev)
	}
	if err != nil {
		f.pool.facts.unsettled.put(f.volume.LV.ID, true)
		f.pool.log.Error(err, "Failed to resume a volume that was held for a cut; it will be retried", "volume", f.volume.LV.Name)
	}
}
