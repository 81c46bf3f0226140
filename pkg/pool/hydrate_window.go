package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// open makes the volume's next window.
func (h *hydrator) open(ctx context.Context, lv string, length size.Sectors) (w *window, err error) {
	err = h.exclusive(ctx, lv, &change{what: "hydrate volume " + lv, act: func(ctx context.Context, v *view) error {
		p := h.pool
		o, l, _, err := v.forkOf(lv)
		if err != nil {
			return err
		}
		// The kernel may be behind: after an interruption, or a change that failed.
		if err := p.settle(ctx, v, lv); err != nil {
			return err
		}
		old := h.window(o.lv.ID)
		w = &window{layer: layerWindow0, start: o.hydrated}
		if old != nil && old.layer == layerWindow0 {
			w.layer = layerWindow1
		}
		d, err := h.prepare(ctx, v, o, l, w, length)
		if err != nil {
			return err
		}
		h.setWindow(o.lv.ID, w)
		// Who writes past a mirror that copies already leaves the copy stale.
		if err := p.rebase(ctx, v, o, func() error { return p.dm.Resume(d.name, d.udev) }); err != nil {
			h.setWindow(o.lv.ID, old)
			return errors.Join(err, p.rebase(ctx, v, o, func() error { return nil }), p.takeDown(ctx, d))
		}
		if old != nil {
			return p.takeDown(ctx, p.device(v, o.lv, old.layer, udevReal))
		}
		return nil
	}})
	return w, err
}

// prepare makes a window's device, which does not copy yet. The window ends after
// most at latest, and where the volume's piece of the disk does.
func (h *hydrator) prepare(ctx context.Context, v *view, o *volume, l *layer, w *window, most size.Sectors) (device, error) {
	p := h.pool
	d := p.device(v, o.lv, w.layer, udevReal)
	through, err := p.forkUp(ctx, v, o)
	if err != nil {
		return d, err
	}
	own, err := p.linearTable(v, o.lv)
	if err != nil {
		return d, err
	}
	parts := cutTable(own, w.start, min(l.length, w.start+most))
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

// rebase gives the device that has the volume's content the table that it
// should have now, if there is the device; inside runs while it is held.
func (p *Pool) rebase(ctx context.Context, v *view, o *volume, inside func() error) error {
	d := p.device(v, o.lv, "", udevVisible)
	if o.live() != nil {
		d = p.device(v, o.lv, layerReal, udevReal)
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
	return p.swap(ctx, d, info.Suspended, dm.SuspendOptions{SkipLockFS: true}, inside)
}

// await waits until the window is copied.
func (h *hydrator) await(ctx context.Context, lv string, w *window) error {
	v, err := h.pool.latest()
	if err != nil {
		return err
	}
	o := v.volumeByLV(lv)
	if o == nil {
		return errHydrated
	}
	name := h.pool.device(v, o.lv, w.layer, udevReal).name
	for pause := windowLook; ; pause = min(2*pause, windowLookMax) {
		copied, err := h.copied(name)
		if err != nil || copied {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// copied says whether a window's mirror has copied everything; an error if it cannot.
func (h *hydrator) copied(name string) (bool, error) {
	status, err := h.pool.dm.Status(name)
	if err != nil {
		return false, err
	}
	if len(status) != 1 {
		return false, fmt.Errorf("device %s has %d targets instead of a mirror", name, len(status))
	}
	m, is := status[0].Status.(dm.MirrorStatus)
	if !is {
		return false, fmt.Errorf("device %s is no mirror", name)
	}
	for i, leg := range m.Legs {
		if leg.Health != dm.LegAlive {
			return false, fmt.Errorf("copying through device %s: the disk below leg %d (%v) failed, the kernel says %s", name, i, leg.Device, m)
		}
	}
	return m.Synced(), nil
}

// commit records that the window is copied. With the last one the volume is an
// ordinary one.
func (h *hydrator) commit(ctx context.Context, lv string, w *window) error {
	_, err := run(ctx, h.pool, []string{lvKey(lv)}, func(ctx context.Context) (none struct{}, err error) {
		err = h.pool.do(ctx, &change{what: "check the window of volume " + lv, act: func(ctx context.Context, v *view) error {
			return h.valid(ctx, v, lv, w)
		}})
		if err != nil {
			return none, err
		}
		return none, h.pool.do(ctx, h.advance(lv, w))
	})
	return err
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
		for _, s := range o.lv.Segments {
			if pv := t.vg.PVs[s.Stripes[0].PV]; !slices.Contains(t.written, pv) {
				t.written = append(t.written, pv)
			}
		}
		c := o.lv.Clone()
		if w.end() < l.length {
			c.Tags = setTag(c.Tags, tagHydrated, strconv.FormatUint(uint64(w.end()), 10))
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
		p.wiper.wake()
		err := p.rebase(ctx, v, o, func() error { return nil })
		if err == nil {
			err = p.forkDown(ctx, v, o)
		}
		if err == nil {
			err = p.retire(ctx, v, family)
		}
		if err != nil {
			p.unsettled.Store(o.lv.ID, true)
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
	user := p.device(v, o.lv, "", udevVisible)
	if o.live() != nil {
		user = p.device(v, o.lv, layerReal, udevReal)
	}
	info, err := p.find(user)
	if err != nil || info == nil {
		return err
	}
	want, err := p.blocks(ctx, v, o)
	if err != nil {
		return err
	}
	if have, err := p.dm.Table(info.Name); err != nil || !have.Equal(want) {
		return errors.Join(fmt.Errorf("device %s: its table was changed", info.Name), err)
	}
	return nil
}

// intact makes sure that nothing that the window's copy was read from failed
// without a word.
func (h *hydrator) intact(v *view, o *volume, l *layer, source *volume, w *window) error {
	p := h.pool
	if h.window(o.lv.ID) != w || o.hydrated != w.start {
		return fmt.Errorf("volume %s/%s: its window was changed", v.vg.Name, o.lv.Name)
	}
	if copied, err := h.copied(p.device(v, o.lv, w.layer, udevReal).name); err != nil || !copied {
		return errors.Join(fmt.Errorf("volume %s/%s: its window is not copied", v.vg.Name, o.lv.Name), err)
	}
	if s, err := p.snapshotStatus(p.device(v, o.lv, layerFork, udevReal).name); err != nil || s.Invalid {
		return errors.Join(fmt.Errorf("volume %s/%s: %w: the store of what was written to it is gone", v.vg.Name, o.lv.Name, ErrLost), err)
	}
	return errors.Join(p.intact(v, source, l), v.writable())
}

// hydrated makes o an ordinary volume.
func (t *edit) hydrated(o *volume, l *layer) error {
	c := o.lv.Clone()
	c.Tags = dropTags(c.Tags, tagCopy, tagHydrated)
	if !o.deleted {
		c.Flags = nil
	}
	if err := t.put(c); err != nil {
		return err
	}
	if live := o.live(); live != nil {
		c := live.lv.Clone()
		c.Flags = nil
		if err := t.put(c); err != nil {
			return err
		}
	}
	if err := t.discard(o.fork.lv); err != nil {
		return err
	}
	return t.prune(l)
}

// abandon goes back to a volume without a window. A mirror that failed holds
// writes: they go where the volume's position says that its content is.
func (h *hydrator) abandon(lv string) error {
	p := h.pool
	return h.exclusive(p.ctx, lv, &change{what: "stop hydrating volume " + lv, act: func(ctx context.Context, v *view) error {
		o := v.volumeByLV(lv)
		if o == nil {
			return errHydrated
		}
		w := h.window(o.lv.ID)
		if w == nil {
			return nil
		}
		if err := h.shut(ctx, v, o, w); err != nil {
			return err
		}
		h.setWindow(o.lv.ID, nil)
		if err := p.rebase(ctx, v, o, func() error { return nil }); err != nil {
			h.setWindow(o.lv.ID, w)
			return err
		}
		if !o.forked() { // the last commit had failed for us only
			return p.forkDown(ctx, v, o)
		}
		return p.takeDown(ctx, p.device(v, o.lv, w.layer, udevReal))
	}})
}

// shut makes a window's device lead to where the volume's content is, without a
// mirror: to the fork or, if the position is behind the window already, to the
// volume's own blocks.
func (h *hydrator) shut(ctx context.Context, v *view, o *volume, w *window) error {
	p := h.pool
	d := p.device(v, o.lv, w.layer, udevReal)
	info, err := p.find(d)
	if err != nil || info == nil {
		return err
	}
	var to dm.Table
	if o.forked() && o.hydrated < w.end() {
		fork, err := p.find(p.device(v, o.lv, layerFork, udevReal))
		if err != nil || fork == nil {
			return err
		}
		to = whole(w.length, dm.Linear{Device: fork.Device, Offset: w.start})
	} else {
		own, err := p.linearTable(v, o.lv)
		if err != nil {
			return err
		}
		for _, s := range cutTable(own, w.start, w.end()) {
			s.Start -= w.start
			to = append(to, s)
		}
	}
	if _, _, err := p.ensureFrom(info, d, to, false); err != nil {
		return err
	}
	return p.swap(ctx, d, info.Suspended, dm.SuspendOptions{SkipLockFS: true, NoFlush: true}, func() error { return nil })
}

// shutLeft does that for windows that a former process left. Their mirrors may
// hold writes since a disk failed: nothing above them could be suspended.
func (h *hydrator) shutLeft(ctx context.Context, v *view, o *volume) error {
	p := h.pool
	for _, layer := range []string{layerWindow0, layerWindow1} {
		info, err := p.find(p.device(v, o.lv, layer, udevReal))
		if err != nil {
			return err
		}
		if info == nil || !info.Live {
			continue
		}
		table, err := p.dm.Table(info.Name)
		if err != nil {
			return err
		}
		if m, is := table[0].Target.(dm.Mirror); is && len(m.Legs) == 2 {
			if err := h.shut(ctx, v, o, &window{layer: layer, start: m.Legs[0].Offset, length: table.Length()}); err != nil {
				return err
			}
		}
	}
	return nil
}
