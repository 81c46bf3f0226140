package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// open sets up the volume's next window.
func (h *hydrator) open(ctx context.Context, lv string, s *search, length size.Sectors) (w *window, err error) {
	err = h.exclusive(ctx, lv, &change{what: "hydrate volume " + lv, act: func(ctx context.Context, v *view) error {
		o, missing, err := h.missing(v, lv)
		if err != nil {
			return err
		}
		old := h.window(o.LV.ID)
		if old != nil && h.pool.heldStill(v, o) { // its device is in a table that is loaded, but not in use
			old = nil
			if err := h.move(ctx, v, o, nil); err != nil {
				return err
			}
		}
		if w, err = h.next(v, o, s.next(missing, length)); err != nil {
			return err
		}
		if err := h.move(ctx, v, o, w); err != nil {
			if old != nil && o.Hydrated.Has(old.Span) { // the volume may already be written without the window
				old = nil
			}
			return errors.Join(err, h.move(ctx, v, o, old))
		}
		return nil
	}})
	return w, err
}

// move replaces the volume's window, nil for none, and makes the devices follow.
func (h *hydrator) move(ctx context.Context, v *view, o *catalog.Volume, w *window) error {
	h.setWindow(o.LV.ID, w)
	return h.pool.forkUp(ctx, v, o)
}

// missing returns the parts of a volume that are not hydrated, at least one.
func (h *hydrator) missing(v *view, lv string) (*catalog.Volume, catalog.Spans, error) {
	o, l, _, err := v.ForkOf(lv)
	if err != nil {
		return nil, nil, err
	}
	missing := o.Hydrated.Missing(l.Length)
	if len(missing) == 0 {
		return nil, nil, fmt.Errorf("volume %s/%s: %w: its tags were changed: they say that all of it is hydrated, but it is still a fork", v.VG.Name, o.LV.Name, ErrPrecondition)
	}
	return o, missing, nil
}

// freeLayer returns the window layer that the volume's table does not use.
func (h *hydrator) freeLayer(v *view, o *catalog.Volume) (string, error) {
	info, err := h.pool.find(v.device(o.LV, layerWindow0, udevReal))
	if err == nil && info != nil && info.OpenCount > 0 {
		return layerWindow1, nil
	}
	return layerWindow0, err
}

// next returns the window that begins at the given place. The window ends no later
// than the contiguous extents of the volume at that place.
func (h *hydrator) next(v *view, o *catalog.Volume, at catalog.Span) (*window, error) {
	if _, err := h.pool.hasTarget(targetMirror); err != nil {
		return nil, err
	}
	layer, err := h.freeLayer(v, o)
	if err != nil {
		return nil, err
	}
	own, err := v.linearTable(o.LV)
	if err != nil {
		return nil, err
	}
	parts := cutTable(own, at.Start, at.End())
	if len(parts) == 0 {
		return nil, fmt.Errorf("volume %s/%s: %w: hydration would continue at sector %d, which is beyond its end: lvreduce shortened it, or its tags were changed",
			v.VG.Name, o.LV.Name, ErrPrecondition, at.Start)
	}
	return &window{layer, catalog.Span{Start: at.Start, Length: parts[0].Length}}, nil
}

// region returns the largest region size that the kernel accepts for a mirror of
// that length.
func region(length size.Sectors) size.Sectors {
	r := largestRegion
	for r > length {
		r /= 2
	}
	return r
}

// await waits until the window is copied. The kernel sends an event when the copy
// is complete, and when a leg of the mirror fails. If nothing is copied for
// stallLimit, as when a disk does not answer, await calls pass, so that others need
// not wait.
func (h *hydrator) await(ctx context.Context, lv string, w *window, pass func()) error {
	v, err := h.pool.latest()
	if err != nil {
		return err
	}
	o := v.VolumeByLV(lv)
	if o == nil {
		return catalog.ErrHydrated
	}
	name := v.device(o.LV, w.layer, udevReal).name
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

// mirror returns the status of a window's mirror; an error if a leg has failed.
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

// commit records that the window is copied. After the last window the volume
// becomes an ordinary volume.
func (h *hydrator) commit(ctx context.Context, lv string, w *window) error {
	// The commit flushes too, but then other changes would wait while the disks
	// write a whole window out of their caches.
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

// flush makes the disks write the copied data from their caches.
func (h *hydrator) flush(lv string, w *window) error {
	v, err := h.pool.latest()
	if err != nil {
		return err
	}
	o := v.VolumeByLV(lv)
	if o == nil {
		return catalog.ErrHydrated
	}
	ranges, err := catalog.PhysicalOf(o.LV, v.ExtentsOf(w.Span))
	if err != nil {
		return err
	}
	for _, r := range ranges {
		pv := v.VG.PVs[r.PV]
		if err := v.Missing(pv); err != nil {
			return fmt.Errorf("logical volume %s/%s: %w", v.VG.Name, lv, err)
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

// advance returns the change that moves the volume's position past the window.
func (h *hydrator) advance(lv string, w *window) *change {
	p, finished, family := h.pool, false, []string(nil)
	return &change{what: "hydrate volume " + lv, edit: func(t *edit) error {
		o, l, source, err := t.ForkOf(lv)
		if err != nil {
			return err
		}
		if err := h.intact(t.view(), o, l, source, w); err != nil {
			return err
		}
		// The copied data must be on the disk before the metadata says so.
		ranges, err := catalog.Physical(o.LV)
		if err != nil {
			return err
		}
		for _, r := range ranges {
			if pv := t.VG.PVs[r.PV]; !slices.Contains(t.written, pv) {
				t.written = append(t.written, pv)
			}
		}
		if missing := o.Hydrated.Missing(l.Length).Without(w.Span); len(missing) > 0 {
			return t.SetHydrated(o, missing, l.Length)
		}
		finished, family = true, t.Family(source.LV.Name)
		return t.Hydrated(o, l)
	}, act: func(ctx context.Context, v *view) error {
		if !finished {
			return nil
		}
		o := v.VolumeByLV(lv)
		if o == nil {
			return nil
		}
		err := p.converge(ctx, v, lv)
		if err == nil {
			err = p.retire(ctx, v, family)
		}
		if err != nil {
			p.facts.unsettled.put(o.LV.ID, true)
			p.log.Error(err, "A hydrated volume still has devices that it no longer needs", "volume", lv)
		}
		return nil
	}}
}

// valid returns an error unless the window's copy is the volume's content: the copy
// is complete, and every write went to both sides.
func (h *hydrator) valid(v *view, lv string, w *window) error {
	p := h.pool
	o, l, source, err := v.ForkOf(lv)
	if err != nil {
		return err
	}
	if err := h.intact(v, o, l, source, w); err != nil {
		return err
	}
	c := p.convergence(v, lv, demand{content: o.LV.ID})
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
	if c.want.held[user.uuid] { // table with which it is resumed
		have = user.goesOn()
	}
	if !have.Equal(want) {
		return fmt.Errorf("device %s: its table was changed", user.Name)
	}
	return nil
}

// intact returns an error if anything that the window was copied from failed. Such
// a failure is not visible in the mirror.
func (h *hydrator) intact(v *view, o *catalog.Volume, l *catalog.Layer, source *catalog.Volume, w *window) error {
	p := h.pool
	if h.window(o.LV.ID) != w || !o.Hydrated.Missing(l.Length).Contains(w.Span) {
		return fmt.Errorf("volume %s/%s: its window was changed", v.VG.Name, o.LV.Name)
	}
	if m, err := h.mirror(v.device(o.LV, w.layer, udevReal).name); err != nil || !m.Synced() {
		return errors.Join(fmt.Errorf("volume %s/%s: its window is not copied", v.VG.Name, o.LV.Name), err)
	}
	if s, err := p.snapshotStatus(v.forkDevice(o.LV).name); err != nil || s.Invalid {
		return errors.Join(fmt.Errorf("volume %s/%s: %w: the store that holds its writes is gone", v.VG.Name, o.LV.Name, ErrLost), err)
	}
	return errors.Join(p.intact(v, source, l), v.Writable())
}
