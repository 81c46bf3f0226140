package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	zeroStep   = 64 * size.MiB          // between two looks whether to go on
	wipeCommit = 2 * time.Second        // wiped extents are given back at least this often
	wipeLVs    = 64                     // and after this many logical volumes
	wipeSoon   = 100 * time.Millisecond // pause after the first failure
	wipeRetry  = 5 * time.Second        // pause when trash cannot be wiped, as while a device of it is open
)

// zero overwrites part of a physical volume with zeroes, from the first byte of
// extent r.Start on, and waits until they are on the disk.
func (p *Pool) zero(ctx context.Context, v *view, r lvm2.Range, length size.Bytes) error {
	pv := v.vg.PVs[r.PV]
	f, err := os.OpenFile(pv.Device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	from := pv.PEStart.Bytes() + size.Bytes(r.Start)*v.extent()
	for done := size.Bytes(0); done < length; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(zeroStep, length-done)
		if err := zeroRange(f, from+done, n); err != nil {
			return fmt.Errorf("zeroing %v at byte %d of %s: %w", n, from+done, pv.Device, err)
		}
		done += n
	}
	return unix.Fdatasync(int(f.Fd()))
}

// zeroRange makes the kernel zero a range of a block device: by unmapping where
// the device promises zeroes afterwards, else by writing them.
func zeroRange(f *os.File, from, length size.Bytes) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(from), int64(length))
	if err == nil || !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, int64(from), int64(length))
}

// wiper zeroes the extents of deleted volumes and layers in the background and
// then gives them back.
type wiper struct {
	pool   *Pool
	signal chan struct{}
	mu     sync.Mutex
	next   chan struct{} // closed when extents were freed
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

// freed returns a channel that is closed the next time extents become free.
func (w *wiper) freed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.next
}

func (w *wiper) announce() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.next)
	w.next = make(chan struct{})
}

func (w *wiper) loop(ctx context.Context) {
	failures := 0
	for {
		v, err := w.pool.latest()
		for err == nil && len(v.trash) > 0 {
			if err = w.round(ctx, v); err != nil {
				break
			}
			v, err = w.pool.latest()
		}
		retry := (<-chan time.Time)(nil)
		if err == nil {
			failures = 0
		} else {
			// Once is no news: the devices go a moment after the metadata.
			pause := wipeSoon
			if failures++; failures > 1 && ctx.Err() == nil {
				w.pool.log.Error(err, "Wiping deleted volumes", "volumeGroup", w.pool.vgName)
				pause = wipeRetry
			}
			retry = time.After(pause)
		}
		select {
		case <-w.signal:
		case <-retry:
		case <-ctx.Done():
			return
		}
	}
}

// round wipes for a while and commits what it did. A large LV is shortened from
// its end, so that an interruption loses at most one round's work.
func (w *wiper) round(ctx context.Context, v *view) error {
	p := w.pool
	began := time.Now()
	wiped := map[*lvm2.LV]lvm2.Extents{} // from the end of each
	var failed error
	for _, lv := range v.trash {
		if time.Since(began) > wipeCommit || len(wiped) == wipeLVs {
			break
		}
		if err := p.noDevices(ctx, v, lv); err != nil {
			failed = err // one that is in the way must not keep others from being wiped
			continue
		}
		step := max(1, v.extents(zeroStep))
		for left := lv.Size(); left > 0 && time.Since(began) <= wipeCommit; {
			n := min(step, left)
			for _, r := range physicalOf(lv, rangeSet{{Start: left - n, Count: n}}) {
				if err := p.zero(ctx, v, r, size.Bytes(r.Count)*v.extent()); err != nil {
					return err
				}
			}
			left -= n
			wiped[lv] += n
		}
	}
	if len(wiped) == 0 {
		return failed
	}
	err := p.do(ctx, &change{what: "free wiped extents", edit: func(t *edit) error {
		for lv, n := range wiped {
			if err := t.shorten(v.vg, lv, n); err != nil {
				return err
			}
		}
		return nil
	}})
	if err == nil {
		w.announce()
	}
	return errors.Join(err, failed)
}

// shorten frees the last n extents of a piece of trash, which were wiped where
// it was when it was the given LV of the given group.
func (t *edit) shorten(group *lvm2.VG, wiped *lvm2.LV, n lvm2.Extents) error {
	lv := t.vg.LVByID(wiped.ID)
	if _, ok := t.decoded[lv].(trashed); lv == nil || !ok || !sameExtents(group, wiped, t.vg, lv) {
		return nil // LVM2 removed or moved it meanwhile
	}
	length := lv.Size()
	t.wiped = t.wiped.union(newRangeSet(physicalOf(lv, rangeSet{{Start: length - n, Count: n}})...))
	if n == length {
		return t.remove(lv.ID)
	}
	c := lv.Clone()
	c.Segments = nil
	for _, r := range physicalOf(lv, rangeSet{{Start: 0, Count: length - n}}) {
		c.Segments = appendExtents(c.Segments, r)
	}
	return t.put(c)
}

// noDevices makes sure that no device over lv's extents is left, which an
// interrupted delete may have left behind, or pvmove, which activates what it
// moves. Devices are removed under the group's lock only: LVM2 may be about to
// resume one.
func (p *Pool) noDevices(ctx context.Context, v *view, lv *lvm2.LV) error {
	if !linear(lv) {
		return fmt.Errorf("deleted logical volume %s/%s is not wiped: %w: pvmove or something like it is at work on it", v.vg.Name, lv.Name, ErrPrecondition)
	}
	for _, layer := range []string{"", layerCOW, layerReal} {
		d := p.device(v, lv, layer, udevReal)
		info, err := p.find(d)
		if err != nil {
			return err
		}
		if info == nil {
			continue
		}
		if info.OpenCount > 0 {
			return fmt.Errorf("deleted logical volume %s/%s is not wiped: %w: its device %s is open", v.vg.Name, lv.Name, ErrInUse, info.Name)
		}
		if err := p.do(ctx, &change{what: "remove device " + info.Name, act: func(ctx context.Context, v *view) error {
			if now := v.vg.LVByID(lv.ID); now != nil && !linear(now) {
				return fmt.Errorf("deleted logical volume %s/%s: %w: pvmove began to move it", v.vg.Name, lv.Name, ErrPrecondition)
			}
			return p.takeDown(ctx, d)
		}}); err != nil {
			return err
		}
	}
	return nil
}
