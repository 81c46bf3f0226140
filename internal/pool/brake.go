package pool

import (
	"context"
	"errors"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// There are two ways to stop those who write to a volume.
//
// The brake suspends the store's device while the store grows, for at most
// growLimit: the kernel goes on handing out chunks until as many copies wait as
// it allows, and then the writers wait. It needs no lock of the volume's device, which
// a cut may have for as long as the file system takes to freeze: just then much is
// written. Writes to chunks that are in the store already go on.
//
// A hold suspends the volume itself, for as long as its live layer must not be
// lost (Pool.keep) and cannot grow. The store stays readable, so what reads through
// it goes on and can bring the hold to its end.
const (
	suspendLimit = 10 * time.Second      // for I/O under way to end
	holdLook     = 10 * time.Millisecond // between two looks whether a hold can end
)

// brake holds the writers of a store until its growth g is done. d is the store's device.
func (p *Pool) brake(ctx context.Context, g *growth, d device) {
	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, growLimit)
	defer cancel()
	if err := p.alone(limited, g.store, func() error { return p.suspend(limited, d) }); err != nil {
		g.braked.Store(false)
		if !errors.Is(err, dm.ErrNotFound) {
			p.log.Error(err, "Failed to hold writers while a store grows", "store", d.name)
		}
	} else {
		select {
		case <-g.done:
		case <-limited.Done():
		}
	}
	// Whatever happened.
	err := p.alone(context.WithoutCancel(ctx), g.store, func() error { return p.dm.Resume(d.name, d.udev) })
	if err != nil && !errors.Is(err, dm.ErrNotFound) {
		p.log.Error(err, "Failed to release held writers; it will be retried", "store", d.name)
		p.unbraked(g)
	}
	took := time.Since(began)
	p.brakes.add("", took)
	p.log.V(2).Info("Writers were held while a store grew", "store", d.name, "for", took)
}

// unbraked has a convergence let the device of a store go on that the brake could not.
func (p *Pool) unbraked(g *growth) {
	g.braked.Store(false) // else it leaves the device as it is
	if s := p.current.Load().storeOf(g.store); s != nil {
		p.facts.unsettled.put(s.of.lv.ID, true)
		p.caretaker.wake()
	}
}

// alone calls f while nothing else changes the device of the layer's store: a
// resume in the middle of another one makes the kernel drop a loaded table.
func (p *Pool) alone(ctx context.Context, layer lvm2.ID, f func() error) error {
	release, err := p.keys.lock(ctx, storeKey(layer))
	if err != nil {
		return err
	}
	defer release()
	return f()
}

// suspend suspends a device without freezing a file system, which would write more.
func (p *Pool) suspend(ctx context.Context, d device) error {
	limited, cancel := context.WithTimeout(ctx, suspendLimit)
	defer cancel()
	return p.dm.Suspend(limited, d.name, dm.SuspendOptions{SkipLockFS: true})
}

// heldBecause says why writers are held, and what to do.
const heldBecause = "the pool is full, so writes to the volume wait until hydration of it, or of volumes restored from it, finishes; to resume sooner, delete volumes or snapshots, or extend the volume group"

// isHeld tells whether a volume that is suspended is held.
func (p *Pool) isHeld(v *view, o *volume) bool {
	held := p.facts.holding.has(o.lv.ID)
	return held || p.mustHold(v, o) != nil
}

// heldStill says whether the device that has a fork's content is suspended because
// its writers are held. It is given tables, but does not go on with them.
func (p *Pool) heldStill(v *view, o *volume) bool {
	if !o.forked() || o.live() != nil { // or it lies below the one that is suspended
		return false
	}
	info, err := p.find(v.topDevice(o.lv))
	return err == nil && info != nil && info.Live && info.Suspended && p.isHeld(v, o)
}

// mustHold returns the store for which a volume that is suspended must stay so: a
// former process held its writers. nil if there is none.
func (p *Pool) mustHold(v *view, o *volume) *store {
	stores := []*store{v.forkStore(o)}
	if l := o.live(); l != nil && !l.lost {
		stores = append(stores, l.store(o))
	}
	for _, x := range stores {
		if x == nil || v.freeFor(x.lv).size() > 0 || !p.kept(v, x) {
			continue
		}
		s, err := p.snapshotStatus(p.snapshotDevice(v, x).name)
		if err == nil && !s.Invalid && s.Total < sectors(v, v.largest(x)) && s.Total < s.Used+brakeLine(x.chunk, p.peak()) {
			return x
		}
	}
	return nil
}

// startHold holds the writers of a volume whose store cannot grow. If those are we,
// as long as it is wiped, the one who could let them go on would wait for them.
func (p *Pool) startHold(s *store, now rate) {
	if p.scrubbing(s.of.lv.Name) {
		return
	}
	volume, g := s.of.lv.ID, p.newGrowth(s, now)
	if _, first := p.facts.holding.claim(volume, g); first {
		p.hydrator.hurry()
		p.background(func(ctx context.Context) { p.hold(ctx, volume, g) })
	}
}

// holdAgain goes on to hold a volume whose writers a former process held.
func (p *Pool) holdAgain(v *view, o *volume) {
	info, err := p.find(v.topDevice(o.lv))
	if err != nil || info == nil || !info.Suspended {
		return
	}
	if s := p.mustHold(v, o); s != nil {
		p.startHold(s, 0)
	}
}

// hold suspends a volume one of whose stores has no room left, until that can be
// extended by what g says or need not be kept any more. If the pool is closed
// meanwhile the volume stays suspended: a snapshot that is lost stays lost, a
// volume goes on when the pool is opened again.
func (p *Pool) hold(ctx context.Context, volume lvm2.ID, g *growth) {
	defer p.facts.holding.drop(volume)
	began, told := time.Now(), false
	for {
		v := p.current.Load()
		o := v.volumes[volume]
		if o == nil {
			return
		}
		if s := v.storeOf(g.store); s == nil || !p.kept(v, s) {
			break
		}
		d := v.topDevice(o.lv)
		if p.scrubbing(o.lv.Name) { // it began meanwhile, and has the volume's key
			p.facts.unsettled.put(volume, true)
			if err := p.dm.Resume(d.name, d.udev); err != nil {
				p.log.Error(err, "Failed to resume a volume so that it can be wiped", "volume", o.lv.Name)
			}
			return
		}
		// Each time: what is done to the volume meanwhile may resume it.
		err := p.suspend(ctx, d)
		if errors.Is(err, dm.ErrNotFound) {
			return
		}
		if s := v.storeOf(g.store); s != nil && (v.freeFor(s.lv).size() > 0 || p.shorter(v, s)) && p.growStore(ctx, g) == nil {
			break
		}
		if len(v.trash) > 0 && p.wiper.problem() == nil { // else it has a pause of its own
			p.wiper.wake()
		}
		if !told && ctx.Err() == nil {
			told = true
			p.log.Info("Writers are held: "+heldBecause, "volume", o.lv.Name, "err", err)
		}
		select {
		case <-time.After(holdLook):
		case <-ctx.Done():
			return
		}
	}
	if err := p.letGo(ctx, volume); err != nil && ctx.Err() == nil {
		p.facts.unsettled.put(volume, true)
		p.log.Error(err, "Failed to release held writers; it will be retried")
	}
	p.log.Info("Writers were held", "volume", volume, "for", time.Since(began))
}

// letGo lets the writers of a held volume go on, with the table that is right by
// now: a fork may have been hydrated meanwhile.
func (p *Pool) letGo(ctx context.Context, volume lvm2.ID) error {
	o := p.current.Load().volumes[volume]
	if o == nil {
		return nil
	}
	return p.onVolume(ctx, o.lv.Name, func(ctx context.Context) error {
		return p.do(ctx, &change{fast: true, what: "release the writers of volume " + o.lv.Name, act: func(ctx context.Context, v *view) error {
			o := v.volumes[volume]
			if o == nil {
				return nil
			}
			return p.convergeTo(ctx, v, o.lv.Name, demand{goOn: volume})
		}})
	})
}
