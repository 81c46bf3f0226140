package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/internal/point"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	zeroStep   = 64 * size.MiB          // zeroed between two checks whether to continue
	wipeCommit = 2 * time.Second        // wiped extents are freed at least this often
	wipeLVs    = 64                     // and after this many logical volumes
	wipeSoon   = 100 * time.Millisecond // pause before the first attempt, and after a first failure
	wipeRetry  = 5 * time.Second        // pause while trash cannot be wiped, as while its device is open
)

// zeroDevice zeroes a part of a device, and waits until the zeroes are on the disk.
// It zeroes in steps, and checks ctx between two steps.
func zeroDevice(ctx context.Context, f *os.File, from, length size.Bytes, progress func(size.Bytes)) error {
	if err := zeroSteps(ctx, f, from, length, progress); err != nil {
		return err
	}
	return flush(f)
}

// flush waits until what was written to a device is on the disks.
func flush(f *os.File) error { return os.NewSyscallError("fdatasync", unix.Fdatasync(int(f.Fd()))) }

// zeroSteps is zeroDevice without waiting for the disk.
func zeroSteps(ctx context.Context, f *os.File, from, length size.Bytes, progress func(size.Bytes)) error {
	for done := size.Bytes(0); done < length; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(zeroStep, length-done)
		if err := zeroRange(f, from+done, n); err != nil {
			return fmt.Errorf("zeroing %v at byte %d of %s: %w", n, from+done, f.Name(), err)
		}
		done += n
		progress(n)
	}
	return nil
}

// zeroRange makes the kernel zero a range of a block device. The kernel unmaps the
// range if the device promises zeroes afterwards, and else writes zeroes.
func zeroRange(f *os.File, from, length size.Bytes) error {
	if point.On {
		point.Before("zero", f.Name())
		defer point.After("zero", f.Name())
	}
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(from), int64(length))
	if err == nil || !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, int64(from), int64(length))
}

// wiper zeroes the extents of deleted volumes and layers in the background, and
// then frees them.
type wiper struct {
	pool         *Pool
	signal       chan struct{}
	scrubs       jobs                    // volumes whose unknown extents are being zeroed
	beingCleaned atomic.Pointer[lvm2.ID] // trash that the cleaner made of free extents

	mu     sync.Mutex    // guards the fields below; no other lock is taken while it is held
	next   chan struct{} // closed when extents are freed, or when an expected wipe turns out to fail
	failed error         // error of the last round

	failures map[lvm2.ID]failing // trash that the last round could not wipe
}

func newWiper(p *Pool) *wiper {
	return &wiper{pool: p, signal: make(chan struct{}, 1), next: make(chan struct{})}
}

// wake tells the wiper that there is trash.
func (w *wiper) wake() {
	select {
	case w.signal <- struct{}{}:
	default:
	}
}

// problem returns the error that keeps deleted volumes from being wiped; nil if
// there is none.
func (w *wiper) problem() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// freed returns a channel that is closed when extents next become free.
func (w *wiper) freed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.next
}

// settled wakes the wiper if a change added trash, or may have removed an obstacle
// to wiping. It wakes those who wait for room if extents became free. It also wakes
// them if trash or trimmable ends went to others, because then no more room may
// come.
func (w *wiper) settled(before, after *view) {
	swept := w.pool.facts.takeSwept()
	if len(after.Trash) > 0 && (swept || before == nil || before.LessTrash(after.View) || before.OtherDisks(after.View)) {
		w.wake()
	}
	if before == nil || len(after.Free.Subtract(before.Free)) > 0 || after.LessTrash(before.View) || before.TrimmedBy(after.View) {
		w.wakeWaiters()
	}
}

func (w *wiper) loop(ctx context.Context) {
	failures := 0
	for {
		v, err := w.pool.latest()
		for err == nil && len(v.Trash) > 0 {
			if err = w.round(ctx); err != nil {
				break
			}
			v, err = w.pool.latest()
		}
		w.mu.Lock()
		w.failed = err
		w.mu.Unlock()
		retry := (<-chan time.Time)(nil)
		if err == nil {
			failures = 0
		} else {
			// A first failure is expected: devices disappear shortly after the
			// metadata changes.
			pause := wipeSoon
			if failures++; failures > 1 && ctx.Err() == nil {
				w.pool.log.Error(err, "Failed to wipe deleted volumes", "volumeGroup", w.pool.vgName)
				pause = wipeRetry
			}
			retry = time.After(pause)
		}
		select {
		case <-w.signal:
			// Deletes come in bursts. In the pause their devices disappear, and one
			// round wipes many volumes.
			select {
			case <-time.After(wipeSoon):
			case <-ctx.Done():
				return
			}
		case <-retry:
		case <-ctx.Done():
			return
		}
	}
}

// wiping is a piece of trash that is being wiped. Its device is open, so LVM2
// cannot give its extents to others.
type wiping struct {
	lv    *lvm2.LV
	dev   device
	file  *os.File
	wiped lvm2.Extents // extents wiped so far, from the end; only flushWiped makes the zeroes durable
}

// flushWiped waits until the zeroes of all pieces are on the disks, and closes the pieces'
// devices. The zeroes have reached the disks' caches, so one flush of a disk is enough for
// all pieces that lie on it. A piece that cannot be flushed counts as not wiped, and so do
// the other pieces on its disks. A disk that fails a flush may have lost their zeroes too,
// and its next flush then succeeds without them.
func flushWiped(todo []*wiping, left *failedTrash) {
	flushed := map[int]error{} // the result of the flush, by the number of the physical volume
	for _, t := range todo {
		var err error
		if t.wiped > 0 {
			err = t.flush(flushed)
		}
		if err != nil {
			t.wiped = 0
		}
		left.add(t.lv, errors.Join(err, t.file.Close()))
	}
}

// flush makes the zeroes of a piece durable, unless the flush of another piece has done it.
func (t *wiping) flush(flushed map[int]error) error {
	own, err := catalog.Physical(t.lv)
	if err != nil {
		return err
	}
	known := func(r lvm2.Range) bool { _, known := flushed[r.PV]; return known }
	var now error
	if slices.ContainsFunc(own, func(r lvm2.Range) bool { return !known(r) }) {
		now = flush(t.file)
	}
	for _, r := range own {
		if !known(r) {
			flushed[r.PV] = now
		}
		err = cmp.Or(err, flushed[r.PV])
	}
	return err
}

// zero wipes from the end until the deadline.
func (t *wiping) zero(ctx context.Context, group *lvm2.VG, deadline time.Time) error {
	extent := group.ExtentSize.Bytes()
	for left := t.lv.Size(); left > 0 && !time.Now().After(deadline); {
		n := min(left, max(1, lvm2.Extents(zeroStep/extent)))
		if err := zeroSteps(ctx, t.file, size.Bytes(left-n)*extent, size.Bytes(n)*extent, func(size.Bytes) {}); err != nil {
			return fmt.Errorf("deleted logical volume %s/%s: %w", group.Name, t.lv.Name, err)
		}
		left -= n
		t.wiped += n
	}
	return nil
}

// round wipes for a while, and commits the result. A large logical volume is
// shortened from its end, so an interruption loses at most the work of one round. A
// piece that cannot be wiped does not block the others.
func (w *wiper) round(ctx context.Context) error {
	p := w.pool
	var group *lvm2.VG
	var todo []*wiping
	left := failedTrash{is: map[lvm2.ID]bool{}}
	err := p.do(ctx, &change{what: "wipe deleted volumes", act: func(ctx context.Context, v *view) error {
		if v.Unclear != nil {
			return v.NotReclaimed()
		}
		group = v.VG
		mapped, err := p.mappings(v)
		if err != nil {
			return err
		}
		for _, lv := range v.Trash {
			if len(todo) == wipeLVs {
				break
			}
			t, err := p.openTrash(ctx, v, lv, mapped)
			if err != nil {
				left.add(lv, fmt.Errorf("deleted logical volume %s/%s is not wiped: %w", v.VG.Name, lv.Name, err))
				continue
			}
			todo = append(todo, t)
		}
		return nil
	}})
	if err != nil { // the error concerns no particular piece
		return err
	}
	defer func() { w.note(left.is) }()
	deadline := time.Now().Add(wipeCommit)
	for _, t := range todo {
		left.add(t.lv, t.zero(ctx, group, deadline))
	}
	flushWiped(todo, &left)
	err = p.do(p.ctx, &change{what: "free wiped extents", edit: func(e *edit) error {
		for _, t := range todo {
			if now := e.VG.LVByID(t.lv.ID); now != nil && !catalog.SameExtents(group, t.lv, e.VG, now) {
				continue // LVM2 is moving it, and uses its device until the move has ended
			}
			if err := p.takeDown(p.ctx, t.dev); err != nil {
				left.add(t.lv, err)
				continue
			}
			if err := e.Shorten(t.lv.ID, t.wiped); err != nil {
				return err
			}
		}
		return nil
	}})
	if p.ctx.Err() != nil { // the pool is closing: nothing is committed, but remove the devices
		for _, t := range todo {
			left.add(t.lv, p.takeDown(context.WithoutCancel(ctx), t.dev))
		}
	}
	return errors.Join(append(left.why, err)...)
}

// openTrash creates a device of a deleted logical volume, and opens it. It first
// removes the devices that an interrupted delete left.
func (p *Pool) openTrash(ctx context.Context, v *view, lv *lvm2.LV, mapped []catalog.Mapping) (*wiping, error) {
	p.trash.Lock()
	defer p.trash.Unlock()
	table, err := v.linearTable(lv)
	if err != nil {
		return nil, err
	}
	if err := v.mappedByOthers(lv, mapped); err != nil {
		return nil, err
	}
	left := false
	for _, layer := range []string{"", layerReal, layerWindow0, layerWindow1, layerFork, layerCOW} {
		d := v.device(lv, layer, udevReal)
		info, err := p.find(d)
		if err != nil {
			return nil, err
		}
		if info == nil {
			continue
		}
		if err := p.removeDevice(ctx, info.Name, d.udev); err != nil {
			return nil, err
		}
		left = true
	}
	if left {
		if err := p.settleSoon(v); err != nil {
			return nil, err
		}
	}
	t := &wiping{lv: lv, dev: v.device(lv, "", udevReal)}
	if t.file, err = p.openDevice(ctx, v, t.dev, table); err != nil {
		return nil, errors.Join(err, p.takeDown(ctx, t.dev))
	}
	return t, nil
}

// settleSoon makes the caretaker look at the volumes that may have devices of their
// history left, now that a device above those devices is gone.
func (p *Pool) settleSoon(v *view) error {
	has, err := p.allUUIDs()
	if err != nil {
		return err
	}
	for _, o := range v.Volumes.All() {
		frozen := slices.ContainsFunc(o.Layers, func(l *catalog.Layer) bool { return l.Snap == nil && has[v.snapDevice(l.LV).uuid] })
		if has[v.realDevice(o.LV).uuid] && (frozen || !has[v.topDevice(o.LV).uuid]) {
			p.facts.unsettled.put(o.LV.ID, true)
		}
	}
	p.lookAgain()
	return nil
}

// openDevice finds or creates a hidden device, and opens it for writing.
func (p *Pool) openDevice(ctx context.Context, v *view, d device, table dm.Table) (*os.File, error) {
	dev, err := p.single(ctx, v, d, table, false)
	if err != nil {
		return nil, err
	}
	path, err := p.dm.EnsureNode(ctx, d.name, dev)
	if err != nil {
		return nil, err
	}
	return p.openPath(path, d)
}

// openPath opens the node of d, which is active.
func (p *Pool) openPath(path string, d device) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	// Before the open somebody may have removed the device, and its number may now
	// belong to another device, which must not be written to.
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err == nil {
		var info dm.Info
		info, err = p.dm.InfoByDevice(dm.Device{Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev)})
		if err == nil && info.UUID != d.uuid {
			err = fmt.Errorf("%s is now the device %s, not %s", path, info.Name, d.name)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
