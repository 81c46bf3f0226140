package pool

import (
	"context"
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

const (
	watchPause  = 500 * time.Millisecond // between two looks at the live stores
	growAt      = 50                     // percent of use at which a store grows
	lowAt       = 80                     // percent of use at which people are told
	lookTimeout = 30 * time.Second
	attendPause = 10 * time.Second // after looking after a volume failed
)

// monitor watches the live layers' stores, extends them before they fill, and
// records those that the kernel had to drop. What a change could not bring
// about in the kernel is tried again.
func (p *Pool) monitor(ctx context.Context) {
	look, reread := time.NewTicker(watchPause), time.NewTicker(refreshPause)
	defer look.Stop()
	defer reread.Stop()
	for {
		select {
		case <-look.C:
			p.watch()
		case <-reread.C:
			limited, cancel := context.WithTimeout(ctx, lookTimeout)
			if err := p.refresh(limited); err != nil && ctx.Err() == nil {
				p.log.Error(err, "Reading the metadata")
			}
			cancel()
		case <-ctx.Done():
			return
		}
	}
}

// watch looks once at every live store that has a device.
func (p *Pool) watch() {
	v, err := p.latest()
	if err != nil {
		return
	}
	for _, o := range v.volumes {
		if _, again := p.unsettled.Load(o.lv.ID); again {
			p.attend(o, p.settleAgain)
			continue
		}
		l := o.live()
		if l == nil || l.lost {
			continue
		}
		s, err := p.snapshotStatus(p.device(v, l.lv, "", udevSnapshot).name)
		switch {
		case err != nil: // not active
		case s.Invalid:
			p.attend(o, p.recordLost)
		case s.Total > 0 && s.Used*100 >= s.Total*growAt && l.lv.Size() < p.largestStore(v, l):
			p.attend(o, p.growStore)
		}
	}
}

// attend runs f for a volume in the background, one at a time, so that a volume
// whose operations take long does not keep others from being watched. After a
// failure it pauses.
func (p *Pool) attend(o *volume, f func(ctx context.Context, lv string) error) {
	if _, running := p.attended.LoadOrStore(o.lv.ID, true); running {
		return
	}
	p.background(func(ctx context.Context) {
		defer p.attended.Delete(o.lv.ID)
		_, err := run(ctx, p, []string{lvKey(o.lv.Name)}, func(ctx context.Context) (none struct{}, err error) {
			return none, f(ctx, o.lv.Name)
		})
		if err == nil || ctx.Err() != nil {
			return
		}
		p.log.Error(err, "Looking after a volume", "volume", o.lv.Name)
		select {
		case <-time.After(attendPause):
		case <-ctx.Done():
		}
	})
}

// settleAgain brings the kernel in line with the metadata where a change failed to.
func (p *Pool) settleAgain(ctx context.Context, lv string) error {
	return p.do(ctx, &change{what: "bring the devices of volume " + lv + " in line with the metadata", act: func(ctx context.Context, v *view) error {
		o := v.volumeByLV(lv)
		if o == nil {
			return nil
		}
		return p.retire(ctx, v, o)
	}})
}

func (p *Pool) largestStore(v *view, l *layer) lvm2.Extents {
	return v.extents(cow.LargestUseful(l.length.Bytes(), l.chunk.Bytes()))
}

// growStore doubles the store of a volume's live layer, as far as it is of use
// and there is room.
func (p *Pool) growStore(ctx context.Context, lv string) error {
	return p.do(ctx, &change{what: "extend the store of the newest snapshot of volume " + lv, edit: func(t *edit) error {
		o := t.volumeByLV(lv)
		if o == nil || o.live() == nil {
			return nil
		}
		l := o.live()
		have, most := l.lv.Size(), p.largestStore(t.view, l)
		if have >= most {
			return nil
		}
		more := min(max(have, t.extents(leastStore)), most-have, newRangeSet(t.vg.Free()...).size())
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
	}, act: func(ctx context.Context, v *view) error {
		if o := v.volumeByLV(lv); o != nil {
			return p.settle(ctx, v, o)
		}
		return nil
	}})
}

// recordLost writes down that the kernel dropped a volume's live layer. The
// kernel's own mark in the store is not flushed, so it cannot be relied on.
func (p *Pool) recordLost(ctx context.Context, lv string) error {
	return p.do(ctx, &change{what: "record the loss of the snapshots of volume " + lv, edit: func(t *edit) error {
		o := t.volumeByLV(lv)
		if o == nil || o.live() == nil {
			return nil
		}
		s, err := p.snapshotStatus(p.device(t.view, o.live().lv, "", udevSnapshot).name)
		if err != nil || !s.Invalid {
			return err
		}
		// Everything older reads through the live layer.
		for _, l := range o.layers {
			c := l.lv.Clone()
			c.Tags = setTag(c.Tags, tagLost)
			if err := t.put(c); err != nil {
				return err
			}
		}
		return nil
	}})
}
