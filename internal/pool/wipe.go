package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/point"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	zeroStep   = 64 * size.MiB          // between two looks whether to go on
	wipeCommit = 2 * time.Second        // wiped extents are given back at least this often
	wipeLVs    = 64                     // and after this many logical volumes
	wipeSoon   = 100 * time.Millisecond // pause before the first try, and after a first failure
	wipeRetry  = 5 * time.Second        // pause when trash cannot be wiped, as while a device of it is open
)

// zeroDevice zeroes a part of a device, in steps between which it looks whether
// to go on, and waits until the zeroes are on the disk.
func zeroDevice(ctx context.Context, f *os.File, from, length size.Bytes, progress func(size.Bytes)) error {
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
	return os.NewSyscallError("fdatasync", unix.Fdatasync(int(f.Fd())))
}

// zeroRange makes the kernel zero a range of a block device: by unmapping where
// the device promises zeroes afterwards, else by writing them.
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

// wiper zeroes the extents of deleted volumes and layers in the background and
// then gives them back.
type wiper struct {
	pool         *Pool
	signal       chan struct{}
	scrubs       jobs                    // volumes whose unknown extents are being zeroed
	beingCleaned atomic.Pointer[lvm2.ID] // the trash that the cleaner has made of free extents

	mu     sync.Mutex    // guards what follows; no other lock is taken meanwhile
	next   chan struct{} // closed when extents were freed, or some that were to be cannot
	failed error         // of the last round

	failures map[lvm2.ID]failing // trash that could not be wiped in the last round
}

func newWiper(p *Pool) *wiper {
	return &wiper{pool: p, signal: make(chan struct{}, 1), next: make(chan struct{})}
}

// wake says that there is trash.
func (w *wiper) wake() {
	select {
	case w.signal <- struct{}{}:
	default:
	}
}

// problem returns why deleted volumes are not wiped, if so.
func (w *wiper) problem() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// freed returns a channel that is closed the next time extents become free.
func (w *wiper) freed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.next
}

// settled wakes the wiper if a change left more trash, or what kept trash from
// being wiped may be over; and those who wait for room if there is more, or was more
// and others were given it: no more may come.
func (w *wiper) settled(before, after *view) {
	swept := w.pool.facts.takeSwept()
	if len(after.trash) > 0 && (swept || before == nil || before.lessTrash(after) || before.otherDisks(after)) {
		w.wake()
	}
	if before == nil || len(after.free.subtract(before.free)) > 0 || after.lessTrash(before) || before.trimmedBy(after) {
		w.lookAgain()
	}
}

// lessTrash says whether there is trash in after that v does not have.
func (v *view) lessTrash(after *view) bool {
	known := make(map[lvm2.ID]bool, len(v.trash))
	for _, lv := range v.trash {
		known[lv.ID] = true
	}
	return slices.ContainsFunc(after.trash, func(lv *lvm2.LV) bool { return !known[lv.ID] })
}

// trimmedBy says whether a frozen store of v that could give something back need not, or
// cannot, any more in after.
func (v *view) trimmedBy(after *view) bool {
	for id, l := range v.layers {
		if now := after.layers[id]; l.untrimmed() && (now == nil || !now.untrimmed()) {
			return true
		}
	}
	return false
}

// otherDisks says whether a physical volume of after is on another device than in v.
func (v *view) otherDisks(after *view) bool {
	return slices.ContainsFunc(after.vg.PVs, func(pv *lvm2.PV) bool {
		k := v.vg.PVIndex(pv.ID)
		return k < 0 || !pv.SameDevice(v.vg.PVs[k])
	})
}

func (w *wiper) loop(ctx context.Context) {
	failures := 0
	for {
		v, err := w.pool.latest()
		for err == nil && len(v.trash) > 0 {
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
			// Once is no news: the devices go a moment after the metadata.
			pause := wipeSoon
			if failures++; failures > 1 && ctx.Err() == nil {
				w.pool.log.Error(err, "Failed to wipe deleted volumes", "volumeGroup", w.pool.vgName)
				pause = wipeRetry
			}
			retry = time.After(pause)
		}
		select {
		case <-w.signal:
			// Deletes come in bursts: their devices go meanwhile, and one round does for many.
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
// lets nobody else have the extents.
type wiping struct {
	lv    *lvm2.LV
	dev   device
	file  *os.File
	wiped lvm2.Extents // from its end
}

// zero wipes from the end until the deadline.
func (t *wiping) zero(ctx context.Context, group *lvm2.VG, deadline time.Time) error {
	extent := group.ExtentSize.Bytes()
	for left := t.lv.Size(); left > 0 && !time.Now().After(deadline); {
		n := min(left, max(1, lvm2.Extents(zeroStep/extent)))
		if err := zeroDevice(ctx, t.file, size.Bytes(left-n)*extent, size.Bytes(n)*extent, func(size.Bytes) {}); err != nil {
			return fmt.Errorf("deleted logical volume %s/%s: %w", group.Name, t.lv.Name, err)
		}
		left -= n
		t.wiped += n
	}
	return nil
}

// round wipes for a while and commits what it did. A large LV is shortened from
// its end, so that an interruption loses at most one round's work. What cannot
// be wiped does not keep the rest from it.
func (w *wiper) round(ctx context.Context) error {
	p := w.pool
	var group *lvm2.VG
	var todo []*wiping
	left := unwiped{is: map[lvm2.ID]bool{}}
	err := p.do(ctx, &change{what: "wipe deleted volumes", act: func(ctx context.Context, v *view) error {
		if v.unclear != nil {
			return v.notReclaimed()
		}
		group = v.vg
		mapped, err := p.mappings(v)
		if err != nil {
			return err
		}
		for _, lv := range v.trash {
			if len(todo) == wipeLVs {
				break
			}
			t, err := p.openTrash(ctx, v, lv, mapped)
			if err != nil {
				left.add(lv, fmt.Errorf("deleted logical volume %s/%s is not wiped: %w", v.vg.Name, lv.Name, err))
				continue
			}
			todo = append(todo, t)
		}
		return nil
	}})
	if err != nil { // it says nothing of a piece
		return err
	}
	defer func() { w.note(left.is) }()
	deadline := time.Now().Add(wipeCommit)
	for _, t := range todo {
		left.add(t.lv, errors.Join(t.zero(ctx, group, deadline), t.file.Close()))
	}
	err = p.do(p.ctx, &change{what: "free wiped extents", edit: func(e *edit) error {
		for _, t := range todo {
			if now := e.vg.LVByID(t.lv.ID); now != nil && !sameExtents(group, t.lv, e.vg, now) {
				continue // LVM2 moves it: its device is LVM2's until that is over
			}
			if err := p.takeDown(p.ctx, t.dev); err != nil {
				left.add(t.lv, err)
				continue
			}
			if err := e.shorten(t.lv.ID, t.wiped); err != nil {
				return err
			}
		}
		return nil
	}})
	if p.ctx.Err() != nil { // nothing is committed any more, but nothing need be left behind
		for _, t := range todo {
			left.add(t.lv, p.takeDown(context.WithoutCancel(ctx), t.dev))
		}
	}
	return errors.Join(append(left.why, err)...)
}

// notReclaimed is the error of what would destroy what may be needed.
func (v *view) notReclaimed() error {
	return fmt.Errorf("%w: nothing is discarded in volume group %s while a tag is not understood: %w; remove the tag with lvchange --deltag, or use the version of csi-dmsnap that made it",
		ErrPrecondition, v.vg.Name, v.unclear)
}

// openTrash makes a device of a deleted logical volume and opens it. One that an
// interrupted delete left goes first.
func (p *Pool) openTrash(ctx context.Context, v *view, lv *lvm2.LV, mapped []mapping) (*wiping, error) {
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

// settleSoon has those volumes looked after that may have devices of their history
// for nobody any more, now that something that lay on them is gone.
func (p *Pool) settleSoon(v *view) error {
	has, err := p.allUUIDs()
	if err != nil {
		return err
	}
	for _, o := range v.volumes {
		frozen := slices.ContainsFunc(o.layers, func(l *layer) bool { return l.snap == nil && has[v.snapDevice(l.lv).uuid] })
		if has[v.realDevice(o.lv).uuid] && (frozen || !has[v.topDevice(o.lv).uuid]) {
			p.facts.unsettled.put(o.lv.ID, true)
		}
	}
	p.lookAgain()
	return nil
}

// openDevice makes a hidden device, or finds it, and opens it for writing.
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
	// Before it was open somebody may have removed it, and its number be
	// another's: that must not be written to.
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

// shorten frees the last n extents of a piece of trash, which were wiped.
func (t *edit) shorten(id lvm2.ID, n lvm2.Extents) error {
	lv := t.vg.LVByID(id)
	if n == 0 || lv == nil || !t.isTrash(lv) {
		return nil
	}
	length := lv.Size()
	wiped, err := physicalOf(lv, rangeSet{{Start: length - n, Count: n}})
	if err != nil {
		return err
	}
	t.wiped = t.wiped.union(newRangeSet(wiped...))
	if n == length {
		return t.remove(lv.ID)
	}
	left, err := physicalOf(lv, rangeSet{{Start: 0, Count: length - n}})
	if err != nil {
		return err
	}
	c := lv.Clone()
	c.Segments = appendExtents(nil, left...)
	return t.put(c)
}
