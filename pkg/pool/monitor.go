package pool

import (
	"context"
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	slowestLook = 500 * time.Millisecond // between two looks at the live stores
	fastestLook = 20 * time.Millisecond
	growAt      = 50              // percent of use at which a store grows
	growBefore  = 2 * time.Second // or when it would be full so soon at its present rate
	lowAt       = 80              // percent of use at which people are told
	lookTimeout = 30 * time.Second
	attendPause = 10 * time.Second // after settling a volume's devices failed
	growPause   = time.Second      // after extending a store failed
)

// refreshLoop reads the metadata from time to time, to see what LVM2's own
// commands change.
func (p *Pool) refreshLoop(ctx context.Context) {
	for tick := time.NewTicker(refreshPause); ; {
		select {
		case <-tick.C:
			limited, cancel := context.WithTimeout(ctx, lookTimeout)
			if err := p.refresh(limited); err != nil && ctx.Err() == nil {
				p.log.Error(err, "Reading the metadata")
			}
			cancel()
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}

// sample is how full a store was at a moment.
type sample struct {
	used size.Sectors
	at   time.Time
}

// watchLoop watches the live layers' stores, extends them before they fill, and
// records those that the kernel had to drop. It looks the more often the
// faster they fill. What a change could not bring about in the kernel is tried
// again.
func (p *Pool) watchLoop(ctx context.Context) {
	seen := map[lvm2.ID]sample{}
	for pause := slowestLook; ; {
		select {
		case <-time.After(pause):
			pause = p.watch(&seen)
		case <-ctx.Done():
			return
		}
	}
}

// watch looks once at every live store that has a device. It returns when to
// look again: four times before the first of them can be full.
func (p *Pool) watch(seen *map[lvm2.ID]sample) time.Duration {
	v, err := p.latest()
	if err != nil {
		return slowestLook
	}
	pause, now := slowestLook, map[lvm2.ID]sample{}
	for _, o := range v.volumes {
		if _, again := p.unsettled.Load(o.lv.ID); again {
			p.attend(o, "devices", attendPause, p.settleAgain)
		}
		if o.theirs() != "" {
			continue
		}
		if p.trimmable(v, o) != nil {
			p.attend(o, "trim", attendPause, p.trim) // records boundaries, too
		} else if p.unrecorded(o) {
			p.attend(o, "boundary", attendPause, p.recordBoundaries)
		}
		l := o.live()
		if l == nil || l.lost {
			continue
		}
		s, err := p.snapshotStatus(p.device(v, l.lv, "", udevSnapshot).name)
		if err != nil {
			// Not active, or the metadata is ahead: a cut was interrupted, or the volume was adopted.
			if top, err := p.find(p.device(v, o.lv, "", udevVisible)); err == nil && top != nil && top.Live {
				p.attend(o, "devices", attendPause, p.settleAgain)
			}
			continue
		}
		if s.Invalid {
			p.attend(o, "store", growPause, p.recordLost)
			continue
		}
		now[l.lv.ID] = sample{s.Used, time.Now()}
		left := untilFull((*seen)[l.lv.ID], now[l.lv.ID], s.Total)
		if (s.Used*100 >= s.Total*growAt || left < growBefore) && l.lv.Size() < p.largestStore(v, l) {
			p.attend(o, "store", growPause, p.growStore)
		}
		pause = min(pause, max(fastestLook, left/4))
	}
	*seen = now
	return pause
}

// untilFull estimates when a store will be full at the rate between two looks.
func untilFull(before, now sample, total size.Sectors) time.Duration {
	const never = time.Hour
	if before.at.IsZero() || now.used <= before.used || total <= now.used {
		return never
	}
	perSector := float64(now.at.Sub(before.at)) / float64(now.used-before.used)
	return min(never, time.Duration(perSector*float64(total-now.used)))
}

// attend runs f for a volume in the background, one of a kind at a time, so
// that a volume whose operations take long does not keep others from being
// watched. After a failure it pauses.
func (p *Pool) attend(o *volume, kind string, pause time.Duration, f func(ctx context.Context, lv string) error) {
	key := kind + string(o.lv.ID)
	if _, running := p.attended.LoadOrStore(key, true); running {
		return
	}
	p.background(func(ctx context.Context) {
		defer p.attended.Delete(key)
		_, err := run(ctx, p, []string{lvKey(o.lv.Name)}, func(ctx context.Context) (none struct{}, err error) {
			return none, f(ctx, o.lv.Name)
		})
		if err == nil || ctx.Err() != nil {
			return
		}
		p.log.Error(err, "Looking after a volume", "volume", o.lv.Name)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	})
}

// settleAgain brings the kernel in line with the metadata where a change failed to.
func (p *Pool) settleAgain(ctx context.Context, lv string) error {
	return p.do(ctx, &change{what: "bring the devices of volume " + lv + " in line with the metadata", act: func(ctx context.Context, v *view) error {
		if err := p.retire(ctx, v, lv); err != nil {
			return err
		}
		o := v.volumeByLV(lv)
		if o == nil {
			return nil
		}
		err := p.chainDown(ctx, v, o) // also of a volume that is not active
		if err != nil {
			p.unsettled.Store(o.lv.ID, true)
		}
		return err
	}})
}

func (p *Pool) largestStore(v *view, l *layer) lvm2.Extents {
	return v.extents(cow.LargestUseful(l.length.Bytes(), l.chunk.Bytes()))
}

// growStore doubles the store of a volume's live layer, as far as it is of use
// and there is room.
func (p *Pool) growStore(ctx context.Context, lv string) error {
	return p.do(ctx, &change{fast: true, what: "extend the store of the newest snapshot of volume " + lv, edit: func(t *edit) error {
		o := t.volumeByLV(lv)
		if o == nil || o.live() == nil {
			return nil
		}
		l := o.live()
		have, most := l.lv.Size(), p.largestStore(t.view, l)
		if have >= most {
			return nil
		}
		more := min(max(have, t.extents(leastStore)), most-have, t.free.size())
		if more == 0 {
			return fmt.Errorf("store of snapshot %s/%s (%v) cannot grow: %w; when it is full the snapshot is lost",
				t.vg.Name, l.lv.Name, t.bytesOf(l.lv), ErrNoSpace)
		}
		ranges, err := t.growth(l.lv, more, highEnd)
		if err != nil {
			return err
		}
		c := l.lv.Clone()
		c.Segments = appendExtents(c.Segments, ranges...)
		return t.put(c)
	}, act: func(ctx context.Context, v *view) error { return p.settle(ctx, v, lv) }})
}

// recordLost writes down that the kernel dropped a volume's live layer.
func (p *Pool) recordLost(ctx context.Context, lv string) error {
	return p.do(ctx, &change{fast: true, what: "record the loss of the snapshots of volume " + lv, edit: func(t *edit) error {
		o := t.volumeByLV(lv)
		if o == nil || o.live() == nil || !p.dropped(p.device(t.view, o.live().lv, "", udevSnapshot)) {
			return nil
		}
		return t.lose(o, o.live())
	}})
}
