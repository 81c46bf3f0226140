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
		o, missing, err := h.missing(v, lv)
		if err != nil {
			return err
		}
		old := h.window(o.lv.ID)
		if old != nil && h.pool.heldStill(v, o) { // its device is in a table that nobody uses yet
			old = nil
			if err := h.move(ctx, v, o, nil); err != nil {
				return err
			}
		}
		if w, err = h.next(v, o, s.next(missing, length)); err != nil {
			return err
		}
		if err := h.move(ctx, v, o, w); err != nil {
			if old != nil && o.hydrated.has(old.span) { // the volume may be written past it already
				old = nil
			}
			return errors.Join(err, h.move(ctx, v, o, old))
		}
		return nil
	}})
	return w, err
}

// move gives a volume another window, or none, and has the devices follow.
func (h *hydrator) move(ctx context.Context, v *view, o *volume, w *window) error {
	h.setWindow(o.lv.ID, w)
	return h.pool.forkUp(ctx, v, o)
}

// missing returns what of a volume is not hydrated, at least something.
func (h *hydrator) missing(v *view, lv string) (*volume, spans, error) {
	o, l, _, err := v.forkOf(lv)
	if err != nil {
		return nil, nil, err
	}
	missing := o.hydrated.missing(l.length)
	if len(missing) == 0 {
		return nil, nil, fmt.Errorf("volume %s/%s: %w: its tags were changed: they say that all of it is hydrated, but it is still a fork", v.vg.Name, o.lv.Name, ErrPrecondition)
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

// next returns the window of which this is the place. It ends where the volume's piece
// of the disk does.
func (h *hydrator) next(v *view, o *volume, at span) (*window, error) {
	if _, err := h.pool.hasTarget(targetMirror); err != nil {
		return nil, err
	}
	layer, err := h.freeLayer(v, o)
	if err != nil {
		return nil, err
	}
	own, err := v.linearTable(o.lv)
	if err != nil {
		return nil, err
	}
	parts := cutTable(own, at.start, at.end())
	if len(parts) == 0 {
		return nil, fmt.Errorf("volume %s/%s: %w: hydration would continue at sector %d, which is beyond its end: lvreduce shortened it, or its tags were changed",
			v.vg.Name, o.lv.Name, ErrPrecondition, at.start)
	}
	return &window{layer, span{at.start, parts[0].Length}}, nil
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
		return m, fmt.Errorf("device %s is not a mirror", name)
	}
	for i, leg := range m.Legs {
		if leg.Health != dm.LegAlive {
			return m, fmt.Errorf("copying through device %s: %w: leg %d (%v) failed, and the kernel reports %s", name, errUncopied, i, leg.Device, m)
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
			return h.valid(v, lv, w)
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
		if missing := o.hydrated.missing(l.length).without(w.span); len(missing) > 0 {
			return t.setHydrated(o, missing, l.length)
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
		err := p.converge(ctx, v, lv)
		if err == nil {
			err = p.retire(ctx, v, family)
		}
		if err != nil {
			p.facts.unsettled.put(o.lv.ID, true)
			p.log.Error(err, "A hydrated volume still has devices that it no longer needs", "volume", lv)
		}
		return nil
	}}
}

// valid makes sure that the window's copy is the volume's content: it is
// complete, and every write went to both sides.
func (h *hydrator) valid(v *view, lv string, w *window) error {
	p := h.pool
	o, l, source, err := v.forkOf(lv)
	if err != nil {
		return err
	}
	if err := h.intact(v, o, l, source, w); err != nil {
		return err
	}
	c := p.convergence(v, lv, demand{content: o.lv.ID})
	k, err := c.look()
	if err != nil {
		return err
	}
	c.plan(k)
	user := k[v.contentDevice(o).uuid]
	if user == nil {
		return nil
	}
	want, err := c.blocks(o)
	if err != nil {
		return err
	}
	have := user.table
	if c.want.held[user.uuid] { // what it goes on with
		have = user.goesOn()
	}
	if !have.Equal(want) {
		return fmt.Errorf("device %s: its table was changed", user.Name)
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
		return errors.Join(fmt.Errorf("volume %s/%s: %w: the store that holds its writes is gone", v.vg.Name, o.lv.Name, ErrLost), err)
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
