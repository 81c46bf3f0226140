package pool

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// A store is full as soon as the kernel finds no chunk in it, and then the
// snapshot is gone. What bounds how fast that comes is the disk, which copies
// at most at some rate, and the kernel's own limit for copies under way. So
// there is always a moment from which stopping the writers is early enough; the
// monitor looks so often that it does not miss it, even if a volume that was
// idle is written to at full speed from one moment to the next.
const (
	// copiesAtOnce is how many chunks the kernel hands out before the first of
	// them is copied: its limit (module parameter snapshot_cow_threshold of
	// dm-snapshot, 2048 unless somebody changed it), and a chunk for each of
	// so many writers that had passed the limit.
	copiesAtOnce = 2048 + 256
	defaultBurst = size.GiB              // that a store takes in a second at most, until more was seen
	lateness     = 10 * time.Millisecond // by which the monitor may look, and what it decides may take effect, too late
	commitTime   = 50 * time.Millisecond // that extending a store usually takes at most
	ratePeriod   = 50 * time.Millisecond // over which a rate is measured: copies are begun in bursts
	keepsUpFor   = 2 * time.Second       // a store that is filled steadily has room for so long
	growsFor     = 4 * time.Second       // and gets room for so long
	growLimit    = 30 * time.Second      // for a growth to be carried out, and for its writers to be held
	growPause    = time.Second           // after extending a store failed
)

// rate is how fast a store is filled, in sectors per second.
type rate float64

func (r rate) in(d time.Duration) size.Sectors { return size.Sectors(float64(r) * d.Seconds()) }

// during returns the time that n sectors take.
func (r rate) during(n size.Sectors) time.Duration {
	return time.Duration(float64(n) / float64(r) * float64(time.Second))
}

// inFlight is what a store may still be asked for when its writers are held.
func inFlight(chunk size.Sectors) size.Sectors { return cow.MoreSectors(chunk.Bytes(), copiesAtOnce) }

// brakeLine is the room at which writers must be held until a store has grown.
func brakeLine(chunk size.Sectors, peak rate) size.Sectors {
	return inFlight(chunk) + peak.in(fastestLook+2*lateness)
}

// growLine is the room at which a store grows, so that in general nobody is held.
func growLine(chunk size.Sectors, peak, now rate) size.Sectors {
	return max(brakeLine(chunk, peak)+peak.in(commitTime), now.in(keepsUpFor))
}

// nextLook is how long a store with so much room need not be looked at.
func nextLook(left, chunk size.Sectors, peak, now rate) time.Duration {
	if left <= inFlight(chunk) && now == 0 {
		return surveyPause // so small that no haste would be enough
	}
	spare := left - min(left, inFlight(chunk))
	return min(slowestLook, max(fastestLook, peak.during(spare)-2*lateness))
}

// sample is how full a store was at a moment.
type sample struct {
	used size.Sectors
	at   time.Time
}

// next returns the rate after a look, and the sample from which the following
// rate is measured. A rate is forgotten slowly: writers pause.
func (s sample) next(now sample, before rate) (rate, sample) {
	if s.at.IsZero() || now.used < s.used {
		return 0, now
	}
	passed := now.at.Sub(s.at)
	if passed < ratePeriod {
		return before, s
	}
	seen := rate(float64(now.used-s.used) / passed.Seconds())
	return max(seen, before*rate(1-min(1, passed.Seconds()/keepsUpFor.Seconds()))), now
}

// peak is the highest rate that a store of this pool is expected to be filled at.
func (p *Pool) peak() rate {
	return rate(max(p.fastest.Load(), uint64(p.config.BurstRate.Sectors())))
}

// noteRate raises the peak where a store was filled faster, with some margin.
func (p *Pool) noteRate(seen rate) {
	if most := uint64(seen * 1.25); most > p.fastest.Load() {
		p.fastest.Store(most) // the monitor's goroutine alone does
	}
}

// firstStore is the size a new layer's store starts with: enough for what a
// fast writer can do until the monitor sees it, and more for large volumes, whose
// stores then grow less often. Where little is free it leaves most of it to others.
func (p *Pool) firstStore(v *view, origin, chunk size.Bytes) lvm2.Extents {
	most := v.extents(cow.LargestUseful(origin, chunk))
	if p.config.FirstStore != 0 {
		return min(most, v.extents(p.config.FirstStore))
	}
	least := brakeLine(chunk.Sectors(), p.peak()).Bytes()
	want := max(growLine(chunk.Sectors(), p.peak(), 0).Bytes(), min(mostStore, origin/firstPart))
	return min(most, max(v.extents(least), min(v.extents(want), v.free.size()/4)))
}

// step is by how much a store grows at least.
func (p *Pool) step(chunk size.Sectors, now rate) size.Bytes {
	least := p.config.StoreStep
	if least == 0 {
		least = 2 * growLine(chunk, p.peak(), 0).Bytes()
	}
	return max(least, now.in(growsFor).Bytes())
}

// growth is one extension of a store that is under way.
type growth struct {
	store  lvm2.ID
	more   size.Bytes
	must   bool          // also if others find no room after it
	done   chan struct{} // closed when the store has grown, or cannot
	braked atomic.Bool   // its writers are held meanwhile
}

// grow extends a store. No operation on the volume keeps it waiting. If there is
// no room, it waits until trash is wiped.
func (p *Pool) grow(ctx context.Context, g *growth) {
	defer p.facts.growing.drop(g.store)
	limited, cancel := context.WithTimeout(ctx, growLimit)
	defer cancel()
	var err error
	var freed <-chan struct{}
	for {
		freed = p.wiper.freed()
		if err = p.growStore(limited, g); !errors.Is(err, ErrNoSpace) {
			break
		}
		p.giveUpUnread()
		// Not for frozen stores to be trimmed: that may wait for those whom this store holds.
		if v := p.current.Load(); v.storeOf(g.store) == nil || p.wipedSoon(v, v.growsOn(v.storeOf(g.store).lv)) == 0 {
			break
		}
		p.wiper.wake()
		select {
		case <-freed:
			continue
		case <-limited.Done():
		}
		break
	}
	close(g.done)
	if errors.Is(err, ErrNoSpace) {
		p.caretaker.wake() // it may have stores to trim
	}
	if err == nil {
		p.facts.cramped.drop(g.store)
		return
	}
	if ctx.Err() != nil {
		return
	}
	if !p.facts.cramped.swap(g.store, err) {
		p.log.Error(err, "Failed to extend a store; it will be retried")
	}
	select {
	case <-time.After(growPause):
	case <-freed:
	case <-ctx.Done():
	}
}

// growStore extends a store, as far as it is of use and there is room. One of which the
// kernel does not have all yet gets that first, and no more: there may be none.
func (p *Pool) growStore(ctx context.Context, g *growth) error {
	return p.do(ctx, &change{fast: true, what: "extend a store", edit: func(t *edit) error {
		s := t.storeOf(g.store)
		if s == nil {
			return nil
		}
		have, most := s.lv.Size(), t.largest(s)
		if have >= most {
			return nil
		}
		if p.shorter(t.view, s) {
			return nil
		}
		room := t.freeFor(s.lv).size()
		if !g.must {
			room = (room + 3) / 4
		}
		more := min(t.extents(g.more), most-have, room)
		if more == 0 {
			return fmt.Errorf("store %s/%s (%v) of volume %s cannot grow: %w; once it is full, %s; delete volumes or snapshots, or extend the volume group",
				t.vg.Name, s.lv.Name, t.bytesOf(s.lv), s.of.lv.Name, ErrNoSpace, p.whenFull(t.view, s))
		}
		ranges, err := t.growth(s.lv, more, highEnd)
		if err != nil {
			return err
		}
		c := s.lv.Clone()
		c.Segments = appendExtents(c.Segments, ranges...)
		return t.put(c)
	}, act: func(ctx context.Context, v *view) error {
		s := v.storeOf(g.store)
		if s == nil {
			return nil
		}
		err := p.lengthen(ctx, v.lease, g.store)
		if err != nil { // the extents are the store's by now
			p.facts.unsettled.put(s.of.lv.ID, true)
		}
		return err
	}})
}

// shorter says whether the device of a store ends before the store does: the kernel did
// not follow when that grew.
func (p *Pool) shorter(v *view, s *store) bool {
	info, err := p.find(v.cowDevice(s.lv))
	if err != nil || info == nil || !info.Live {
		return false
	}
	table, err := p.dm.Table(info.Name)
	return err == nil && table.Length() < sectors(v, s.lv.Size())
}

// lengthen gives the device of a store that has grown its table, if there is one. The
// kernel reads the store's size at each allocation, so growth counts at once, and it
// suspends the device by itself while it takes the table. If somebody else makes the device
// just now, lengthen waits for that: the device may get the table that was right before. A
// device that the brake holds and that has the right table stays held.
func (p *Pool) lengthen(ctx context.Context, l *lease, id lvm2.ID) error {
	return p.alone(ctx, id, func() error {
		v := p.current.Load().leased(l)
		s := v.storeOf(id)
		if s == nil { // it is trimmed, or gone
			return nil
		}
		d := v.cowDevice(s.lv)
		info, err := p.find(d)
		if err != nil || info == nil {
			return err
		}
		table, err := v.linearTable(s.lv)
		if err != nil {
			return err
		}
		has, err := lookAt(p.dm, dm.ListEntry{Name: info.Name, UUID: d.uuid}, false)
		if err != nil {
			return unlessGone(err)
		}
		if g, growing := p.facts.growing.get(id); growing && g.braked.Load() {
			has.Suspended = false
		}
		w := &wanted{device: d, of: s.of, table: disks(table), readOnly: has.ReadOnly} // a frozen one stays so
		c := &carrier{Pool: p, view: v, k: kernel{d.uuid: has}, keyed: true}
		return unlessGone(c.carryOut(ctx, w.alone(has)))
	})
}

// unlessGone returns err unless it says that the device is gone: it was deactivated.
func unlessGone(err error) error {
	if errors.Is(err, dm.ErrNotFound) {
		return nil
	}
	return err
}

// whenFull says what happens when a store is full.
func (p *Pool) whenFull(v *view, s *store) string {
	if p.kept(v, s) {
		return "writes to the volume will block"
	}
	return "the snapshot will be lost"
}
