package pool

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// A store is full as soon as the kernel finds no free chunk in it, and then the
// snapshot is lost. The disk bounds how fast a store fills: it copies only at a
// certain rate, and the kernel limits the copies under way. So for every store
// there is a last moment at which stopping the writers is early enough. The monitor
// looks often enough not to miss that moment, even if an idle volume is suddenly
// written at full speed.
const (
	// copiesAtOnce is the number of chunks that the kernel allocates before it has
	// copied the first of them: its limit (module parameter snapshot_cow_threshold
	// of dm-snapshot, 2048 by default), plus a chunk for each writer that had
	// already passed the limit.
	copiesAtOnce = 2048 + 256
	defaultBurst = size.GiB              // expected peak of a store in a second, until the monitor has seen a higher one
	lateness     = 10 * time.Millisecond // delay that the monitor, and the effect of its decision, may have
	commitTime   = 50 * time.Millisecond // time in which extending a store usually ends
	ratePeriod   = 50 * time.Millisecond // shortest period of a rate: the kernel begins copies in bursts
	keepsUpFor   = 2 * time.Second       // time for which a steadily filled store has room
	growsFor     = 4 * time.Second       // time for which a growth adds room
	growLimit    = 30 * time.Second      // limit for a growth, and for holding its writers
	growPause    = time.Second           // pause after a failed growth
)

// rate is how fast a store is filled, in sectors per second.
type rate float64

func (r rate) in(d time.Duration) size.Sectors { return size.Sectors(float64(r) * d.Seconds()) }

// during returns the time in which n sectors are filled.
func (r rate) during(n size.Sectors) time.Duration {
	return time.Duration(float64(n) / float64(r) * float64(time.Second))
}

// inFlight is the room that a store may still need after its writers are held.
func inFlight(chunk size.Sectors) size.Sectors { return cow.MoreSectors(chunk.Bytes(), copiesAtOnce) }

// brakeLine is the room below which writers must be held until a store has grown.
func brakeLine(chunk size.Sectors, peak rate) size.Sectors {
	return inFlight(chunk) + peak.in(fastestLook+2*lateness)
}

// growLine is the room below which a store grows, early enough that writers are
// rarely held.
func growLine(chunk size.Sectors, peak, now rate) size.Sectors {
	return max(brakeLine(chunk, peak)+peak.in(commitTime), now.in(keepsUpFor))
}

// leastStore is the least length of a new store, unless less can hold every chunk of
// its volume. The monitor may see a new store only after surveyPause, and finds more
// than a brake line of room then.
func leastStore(chunk size.Sectors, peak rate) size.Sectors {
	return max(2*brakeLine(chunk, peak), growLine(chunk, peak, 0))
}

// LeastStore returns the least FirstStore and StoreStep with which no writer fills a
// store before it has grown. c must be valid.
func (c Config) LeastStore() size.Bytes {
	c = c.withDefaults()
	return leastStore(c.Chunk.Sectors(), rate(c.BurstRate.Sectors())).Bytes()
}

// small reports whether the pool is configured with first stores that a writer may
// outrun. Only tests do that.
func (c Config) small() bool { return c.FirstStore != 0 && c.FirstStore < c.LeastStore() }

// decide reports whether a store with that much room left has to grow, and whether
// its writers must be held until it has grown (must). If first stores are small, a
// store is neither grown, nor are its writers held, before part of it is used.
func decide(left, total, chunk size.Sectors, peak, now rate, small bool) (grow, must bool) {
	grows, brakes := growLine(chunk, peak, now), brakeLine(chunk, peak)
	if small {
		grows, brakes = min(grows, total*3/4), min(brakes, total/2)
	}
	return left < grows, left < brakes
}

// lacks returns by how much a store must grow before its writers may continue: then it
// has a brake line of room beyond what is in flight. It returns 0 if the store has that,
// or is as long as is ever useful.
func (p *Pool) lacks(v *view, s *catalog.Store, has dm.SnapshotStatus, inFlight size.Sectors) size.Sectors {
	line, most := brakeLine(s.Chunk, p.peak())+inFlight, sectors(v, v.Largest(s))
	if p.config.small() {
		line = min(line, has.Total/2)
	}
	return min(line-min(line, has.Total-min(has.Total, has.Used)), most-min(most, has.Total))
}

// growable returns by how much a store can grow now: by the extents that the kernel's
// table does not cover yet, and by free extents.
func (v *view) growable(s *catalog.Store, has dm.SnapshotStatus) size.Sectors {
	return max(has.Total, sectors(v, s.LV.Size())) - has.Total + sectors(v, v.FreeFor(s.LV).Size())
}

// nextLook returns how long the monitor may leave a store with that much room
// alone.
func nextLook(left, chunk size.Sectors, peak, now rate) time.Duration {
	if left <= inFlight(chunk) && now == 0 {
		return surveyPause // its writers wait, or the pool is full
	}
	spare := left - min(left, inFlight(chunk))
	return min(slowestLook, max(fastestLook, peak.during(spare)-2*lateness))
}

// sample is the usage of a store at one moment.
type sample struct {
	used size.Sectors
	at   time.Time
}

// next returns the rate after a look, and the sample from which the next rate is
// measured. The rate decays slowly, because writers pause.
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

// peak returns the highest rate at which a store of this pool is expected to be
// filled.
func (p *Pool) peak() rate {
	return rate(max(p.fastest.Load(), uint64(p.config.BurstRate.Sectors())))
}

// noteRate raises the peak, with a margin, after a store was filled faster.
func (p *Pool) noteRate(seen rate) {
	if most := uint64(seen * 1.25); most > p.fastest.Load() {
		p.fastest.Store(most) // only the monitor's goroutine stores it
	}
}

// firstStore returns the initial size of a new layer's store, in extents.
func (p *Pool) firstStore(v *view, origin, chunk size.Bytes) lvm2.Extents {
	return v.Extents(firstLength(p.config, origin, chunk, size.Bytes(v.Free.Size())*v.ExtentSize(), p.peak()))
}

// firstLength returns the least length of a new store. It suffices for the writes of a
// fast writer until the monitor sees them. Large volumes get more, so that their
// stores grow less often. If little is free, most of it is left to others. A store
// that can hold every chunk of its volume never grows.
func firstLength(c Config, origin, chunk, free size.Bytes, peak rate) size.Bytes {
	most, least := cow.LargestUseful(origin, chunk), leastStore(chunk.Sectors(), peak).Bytes()
	switch {
	case c.small():
		return min(most, c.FirstStore)
	case c.FirstStore != 0:
		return min(most, max(least, c.FirstStore))
	}
	return min(most, max(least, min(mostStore, origin/firstPart, free/4)))
}

// growStep returns the least size by which a store grows. least is the size that the
// pool's configuration asks for; 0 if it asks for none.
func growStep(least size.Bytes, chunk size.Sectors, peak, now rate) size.Bytes {
	if least == 0 {
		least = 2 * growLine(chunk, peak, 0).Bytes()
	}
	return max(least, now.in(growsFor).Bytes())
}

// growth is an extension of a store that is under way.
type growth struct {
	storeID lvm2.ID
	more    size.Bytes
	must    bool          // may take all free room, even if nothing is left for others
	done    chan struct{} // closed when the store has grown, or cannot grow
	braked  atomic.Bool   // its writers are held until it ends
}

// grow extends a store, and waits for no operation on the volume. If there is no
// room, grow waits until trash is wiped.
func (p *Pool) grow(ctx context.Context, g *growth) {
	defer p.facts.growing.drop(g.storeID)
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
		// It does not wait for frozen stores to be trimmed: trimming may wait for
		// the writers that this store holds.
		if v := p.current.Load(); v.StoreOf(g.storeID) == nil || p.wipedSoon(v, v.GrowsOn(v.StoreOf(g.storeID).LV)) == 0 {
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
		p.caretaker.wake() // trimming stores may make room
	}
	if err == nil {
		p.facts.cramped.drop(g.storeID)
		return
	}
	if ctx.Err() != nil {
		return
	}
	if !p.facts.cramped.swap(g.storeID, err) {
		p.log.Error(err, "Failed to extend a store; it will be retried")
	}
	select {
	case <-time.After(growPause):
	case <-freed:
	case <-ctx.Done():
	}
}

// growStore extends a store, as far as there is room and the store can use it. If
// the kernel's table does not cover the whole store yet, growStore only loads the
// longer table, because there may be no free extents.
func (p *Pool) growStore(ctx context.Context, g *growth) error {
	return p.do(ctx, &change{fast: true, what: "extend a store", edit: func(t *edit) error {
		s := t.StoreOf(g.storeID)
		if s == nil {
			return nil
		}
		have, most := s.LV.Size(), t.Largest(s)
		if have >= most {
			return nil
		}
		if p.shorter(t.view(), s) {
			return nil
		}
		room := t.FreeFor(s.LV).Size()
		if !g.must {
			room = (room + 3) / 4
		}
		more := min(t.Extents(g.more), most-have, room)
		if more == 0 {
			return fmt.Errorf("store %s/%s (%v) of volume %s cannot grow: %w (once it is full, %s); delete volumes or snapshots, or extend the volume group",
				t.VG.Name, s.LV.Name, t.BytesOf(s.LV), s.Of.LV.Name, ErrNoSpace, p.whenFull(t.view(), s))
		}
		ranges, err := t.Growth(s.LV, more, catalog.HighEnd)
		if err != nil {
			return err
		}
		c := s.LV.Clone()
		c.Segments = catalog.AppendExtents(c.Segments, ranges...)
		return t.Put(c)
	}, act: func(ctx context.Context, v *view) error {
		s := v.StoreOf(g.storeID)
		if s == nil {
			return nil
		}
		err := p.lengthen(ctx, v.lease, g.storeID)
		if err != nil { // the store has its extents, but its device is too short
			p.facts.unsettled.put(s.Of.LV.ID, true)
		}
		return err
	}})
}

// shorter reports whether a store's device is shorter than the store, because the
// kernel did not follow an earlier growth.
func (p *Pool) shorter(v *view, s *catalog.Store) bool {
	info, err := p.find(v.cowDevice(s.LV))
	if err != nil || info == nil || !info.Live {
		return false
	}
	table, err := p.dm.Table(info.Name)
	return err == nil && table.Length() < sectors(v, s.LV.Size())
}

// lengthen loads the longer table of a store that has grown into its device, if
// there is one. The kernel reads the store's size at each allocation, so the growth
// counts immediately. The kernel suspends the device while it swaps the table.
//
// If another change creates the device at the same time, lengthen waits for it,
// because the device may get the table from before the growth. A device that the
// brake holds and that already has the right table stays suspended.
func (p *Pool) lengthen(ctx context.Context, l *lease, id lvm2.ID) error {
	return p.withStoreKey(ctx, id, func() error {
		v := p.current.Load().leased(l)
		s := v.StoreOf(id)
		if s == nil { // it was trimmed or deleted
			return nil
		}
		d := v.cowDevice(s.LV)
		info, err := p.find(d)
		if err != nil || info == nil {
			return err
		}
		table, err := v.linearTable(s.LV)
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
		w := &wanted{device: d, of: s.Of, table: disks(table), readOnly: has.ReadOnly} // keeps a frozen store read-only
		c := &carrier{Pool: p, view: v, k: kernel{d.uuid: has}, keyed: true}
		return unlessGone(c.carryOut(ctx, w.alone(has)))
	})
}

// unlessGone returns err, but nil if err says that the device is gone: it was
// deactivated.
func unlessGone(err error) error {
	if errors.Is(err, dm.ErrNotFound) {
		return nil
	}
	return err
}

// whenFull describes for users the effect of a full store.
func (p *Pool) whenFull(v *view, s *catalog.Store) string {
	if p.kept(v, s) {
		return "writes to the volume will block"
	}
	return "the snapshot will be lost"
}
