package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// open makes the volume's next window.
func (h *hydrator) open(ctx context.Context, lv string, s *search, length size.Sectors) (w *window, err error) {
	err = h.exclusive(ctx, lv, &change{what: "hydrate volume " + lv, act: func(ctx context.Context, v *view) error {
		p := h.pool
		o, missing, err := h.missing(ctx, v, lv)
		if err != nil {
			return err
		}
		old := h.window(o.lv.ID)
		if old != nil && p.heldStill(v, o) { // its device is in a table that nobody uses yet
			h.setWindow(o.lv.ID, nil)
			if err := p.rebase(ctx, v, o, nothing); err != nil {
				return err
			}
			old = nil
		}
		layer, err := h.freeLayer(v, o)
		if err != nil {
			return err
		}
		w = &window{layer, s.next(missing, length)}
		d, err := h.prepare(ctx, v, o, w)
		if err != nil {
			return err
		}
		h.setWindow(o.lv.ID, w)
		// Who writes past a mirror that copies already leaves the copy stale.
		if err := p.rebase(ctx, v, o, func() error { return p.dm.Resume(d.name, d.udev) }); err != nil {
			h.setWindow(o.lv.ID, old)
			return errors.Join(err, p.rebase(ctx, v, o, nothing), p.takeDown(ctx, d))
		}
		if old != nil && old.layer != w.layer && !p.heldStill(v, o) { // else it is in the table that waits
			return p.takeDown(ctx, v.device(o.lv, old.layer, udevReal))
		}
		return nil
	}})
	return w, err
}

// missing returns what of a volume is not hydrated, at least something, and has
// the kernel follow first: it may be behind after an interruption, or a change that failed.
func (h *hydrator) missing(ctx context.Context, v *view, lv string) (*volume, spans, error) {
	o, l, _, err := v.forkOf(lv)
	if err == nil {
		err = h.pool.settle(ctx, v, lv)
	}
	if err != nil {
		return nil, nil, err
	}
	missing := o.hydrated.missing(l.length)
	if len(missing) == 0 {
		return nil, nil, fmt.Errorf("volume %s/%s: %w: by its tags all is hydrated, and it is not an ordinary volume: they were changed", v.vg.Name, o.lv.Name, ErrPrecondition)
	}
	return o, missing, nil
}

// freeLayer returns the layer of a window's device that the volume's table has not.
func (h *hydrator) freeLayer(v *view, o *volume) (string, error) {
	info, err := h.pool.find(v.device(o.lv, layerWindow0, udevReal))
	if err == nil && info != nil && info.OpenCount > 0 {
		return layerWindow1, nil
	}
	return layerWindow0, err
}

// prepare makes a window's device, which does not copy yet. The window ends where
// the volume's piece of the disk does.
func (h *hydrator) prepare(ctx context.Context, v *view, o *volume, w *window) (device, error) {
	p := h.pool
	d := v.device(o.lv, w.layer, udevReal)
	if _, err := p.hasTarget(targetMirror); err != nil {
		return d, err
	}
	through, err := p.forkUp(ctx, v, o)
	if err != nil {
		return d, err
	}
	own, err := v.linearTable(o.lv)
	if err != nil {
		return d, err
	}
	parts := cutTable(own, w.start, w.end())
	if len(parts) == 0 {
		return d, fmt.Errorf("volume %s/%s: %w: sector %d, where it goes on to be hydrated, lies beyond its end: lvreduce made it shorter, or its tags were changed",
			v.vg.Name, o.lv.Name, ErrPrecondition, w.start)
	}
	to := parts[0]
	w.length = to.Length
	if err := p.takeDown(ctx, d); err != nil { // left by an interruption
		return d, err
	}
	_, _, err = p.ensureFrom(nil, d, whole(w.length, dm.Mirror{
		Region: region(w.length), Legs: []dm.Area{{Device: through, Offset: w.start}, dm.Area(to.Target.(dm.Linear))}, HandleErrors: true,
	}), false)
	return d, err
}

// region is the largest unit of copying that the kernel takes for a mirror of
// that length.
func region(length size.Sectors) size.Sectors {
	r := largestRegion
	for r > length {
		r /= 2
	}
	return r
}

func nothing() error { return nil }

// rebase gives the device that has the volume's content the table that it
// should have now, if there is the device; inside runs while it is held.
func (p *Pool) rebase(ctx context.Context, v *view, o *volume, inside func() error) error {
	d := v.topDevice(o.lv)
	if o.live() != nil {
		d = v.realDevice(o.lv)
	}
	info, err := p.find(d)
	if err != nil {
		return err
	}
	if info == nil || !info.Live {
		return inside()
	}
	table, err := p.blocks(ctx, v, o)
	if err != nil {
		return err
	}
	if _, _, err := p.ensureFrom(info, d, table, readOnlyLV(o.lv)); err != nil {
		return err
	}
	if p.heldStill(v, o) { // whoever lets it go on finds the table loaded
		return inside()
	}
	return p.swap(ctx, d, info.Suspended, dm.SuspendOptions{SkipLockFS: true}, inside)
}

// await waits until the window is copied: the kernel makes an event when it is, and
// when a leg of the mirror fails. If nothing is copied for a while, as where a disk
// does not answer, it calls pass: others need not wait for that.
func (h *hydrator) await(ctx context.Context, lv string, w *window, pass func()) error {
	v, err := h.pool.latest()
	if err != nil {
		return err
	}
	o := v.volumeByLV(lv)
	if o == nil {
		return errHydrated
	}
	name := v.device(o.lv, w.layer, udevReal).name
	events, err := h.pool.dm.NewWatcher()
	if err != nil {
		return err
	}
	defer events.Close()
	before, at := uint64(0), time.Now()
	for {
		if err := events.Arm(); err != nil {
			return err
		}
		m, err := h.mirror(name)
		if err != nil || m.Synced() {
			return err
		}
		if m.InSync > before {
			before, at = m.InSync, time.Now()
		} else if time.Since(at) > stallLimit {
			pass()
		}
		limited, cancel := context.WithTimeout(ctx, windowLook)
		err = events.Wait(limited)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
}

// mirror tells how far a window's mirror is; an error if it cannot copy everything.
func (h *hydrator) mirror(name string) (m dm.MirrorStatus, err error) {
	status, err := h.pool.dm.Status(name)
	if err != nil {
		return m, err
	}
	if len(status) != 1 {
		return m, fmt.Errorf("device %s has %d targets instead of a mirror", name, len(status))
	}
	m, is := status[0].Status.(dm.MirrorStatus)
	if !is {
		return m, fmt.Errorf("device %s is no mirror", name)
	}
	for i, leg := range m.Legs {
		if leg.Health != dm.LegAlive {
			return m, fmt.Errorf("copying through device %s: %w: leg %d (%v) failed, the kernel says %s", name, errUncopied, i, leg.Device, m)
		}
	}
	return m, nil
}

// commit records that the window is copied. With the last one the volume is an
// ordinary one.
func (h *hydrator) commit(ctx context.Context, lv string, w *window) error {
	// The commit flushes too, but nobody else's change should wait for what the
	// disks' caches hold of a whole window.
	if err := h.flush(lv, w); err != nil {
		return err
	}
	return h.pool.onVolume(ctx, lv, func(ctx context.Context) error {
		err := h.pool.do(ctx, &change{what: "check the window of volume " + lv, act: func(ctx context.Context, v *view) error {
			return h.valid(ctx, v, lv, w)
		}})
		if err != nil {
			return err
		}
		return h.pool.do(ctx, h.advance(lv, w))
	})
}

// flush has the disk write down what was copied to it.
func (h *hydrator) flush(lv string, w *window) error {
	v, err := h.pool.latest()
	if err != nil {
		return err
	}
	o := v.volumeByLV(lv)
	if o == nil {
		return errHydrated
	}
	ranges, err := physicalOf(o.lv, v.extentsOf(w.span))
	if err != nil {
		return err
	}
	for _, r := range ranges {
		pv := v.vg.PVs[r.PV]
		if err := v.missing(pv); err != nil {
			return fmt.Errorf("logical volume %s/%s: %w", v.vg.Name, lv, err)
		}
		f, err := openDisk(pv, os.O_RDONLY)
		if err != nil {
			return err
		}
		if err := errors.Join(unix.Fdatasync(int(f.Fd())), f.Close()); err != nil {
			return fmt.Errorf("flushing %s: %w", pv.Device, err)
		}
	}
	return nil
}

// advance is the change that moves the volume's position behind the window.
func (h *hydrator) advance(lv string, w *window) *change {
	p, finished, family := h.pool, false, []string(nil)
	return &change{what: "hydrate volume " + lv, edit: func(t *edit) error {
		o, l, source, err := t.forkOf(lv)
		if err != nil {
			return err
		}
		if err := h.intact(t.view, o, l, source, w); err != nil {
			return err
		}
		// What was copied must be on the disk before the metadata says so.
		ranges, err := physical(o.lv)
		if err != nil {
			return err
		}
		for _, r := range ranges {
			if pv := t.vg.PVs[r.PV]; !slices.Contains(t.written, pv) {
				t.written = append(t.written, pv)
			}
		}
		c := o.lv.Clone()
		if missing := o.hydrated.missing(l.length).without(w.span); len(missing) > 0 {
			c.Tags = setTag(c.Tags, tagHydrated, hydratedBut(missing, l.length).String())
			return t.put(c)
		}
		finished, family = true, t.family(source.lv.Name)
		return t.hydrated(o, l)
	}, act: func(ctx context.Context, v *view) error {
		if !finished {
			return nil
		}
		o := v.volumeByLV(lv)
		if o == nil {
			return nil
		}
		h.setWindow(o.lv.ID, nil)
		err := p.rebase(ctx, v, o, nothing)
		if err == nil {
			err = p.forkDown(ctx, v, o)
		}
		if err == nil {
			err = p.retire(ctx, v, family)
		}
		if err != nil {
			p.facts.unsettled.put(o.lv.ID, true)
			p.log.Error(err, "A volume that is hydrated has devices left", "volume", lv)
		}
		return nil
	}}
}

// valid makes sure that the window's copy is the volume's content: it is
// complete, and every write went to both sides.
func (h *hydrator) valid(ctx context.Context, v *view, lv string, w *window) error {
	p := h.pool
	o, l, source, err := v.forkOf(lv)
	if err != nil {
		return err
	}
	if err := h.intact(v, o, l, source, w); err != nil {
		return err
	}
	user := v.topDevice(o.lv)
	if o.live() != nil {
		user = v.realDevice(o.lv)
	}
	info, err := p.find(user)
	if err != nil || info == nil {
		return err
	}
	want, err := p.blocks(ctx, v, o)
	if err != nil {
		return err
	}
	table := p.dm.Table
	if info.Loaded && p.heldStill(v, o) { // what it goes on with
		table = p.dm.LoadedTable
	}
	if have, err := table(info.Name); err != nil || !have.Equal(want) {
		return errors.Join(fmt.Errorf("device %s: its table was changed", info.Name), err)
	}
	return nil
}

// intact makes sure that nothing that the window's copy was read from failed
// without a word.
func (h *hydrator) intact(v *view, o *volume, l *layer, source *volume, w *window) error {
	p := h.pool
	if h.window(o.lv.ID) != w || !o.hydrated.missing(l.length).hold(w.span) {
		return fmt.Errorf("volume %s/%s: its window was changed", v.vg.Name, o.lv.Name)
	}
	if m, err := h.mirror(v.device(o.lv, w.layer, udevReal).name); err != nil || !m.Synced() {
		return errors.Join(fmt.Errorf("volume %s/%s: its window is not copied", v.vg.Name, o.lv.Name), err)
	}
	if s, err := p.snapshotStatus(v.forkDevice(o.lv).name); err != nil || s.Invalid {
		return errors.Join(fmt.Errorf("volume %s/%s: %w: the store of what was written to it is gone", v.vg.Name, o.lv.Name, ErrLost), err)
	}
	return errors.Join(p.intact(v, source, l), v.writable())
}

// hydrated makes o an ordinary volume.
func (t *edit) hydrated(o *volume, l *layer) error {
	c := o.lv.Clone()
	c.Tags = dropTags(c.Tags, tagCopy, tagHydrated)
	if !o.deleted {
		handBack(c)
	}
	if err := t.put(c); err != nil {
		return err
	}
	if live := o.live(); live != nil {
		c := live.lv.Clone()
		handBack(c)
		if err := t.put(c); err != nil {
			return err
		}
	}
	if err := t.discard(o.fork.lv); err != nil {
		return err
	}
	return t.prune(l)
}
