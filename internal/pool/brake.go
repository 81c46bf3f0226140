package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// There are two ways to stop the writers of a volume.
//
// The brake suspends the store's device while the store grows, for at most
// growLimit. The kernel continues to allocate chunks until it has as many pending
// copies as it allows, and then the writers wait. Writes to chunks that are already
// in the store continue. The brake does not lock the volume's device. A cut may
// hold that lock for as long as the file system takes to freeze, when many writes
// happen.
//
// A hold suspends the volume itself, for as long as its live layer must not be lost
// (storeGuard.keep) and cannot grow. The store stays readable, so hydration through it
// continues and can end the hold.
const (
	suspendLimit = 10 * time.Second      // limit for I/O under way to end
	holdLook     = 10 * time.Millisecond // pause between two checks whether a hold can end
)

// brake holds the writers of a store until its growth g is done. d is the store's
// device.
func (p *Pool) brake(ctx context.Context, g *growth, d device) {
	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, growLimit)
	defer cancel()
	if err := p.withStoreKey(limited, g.storeID, func() error { return p.suspend(limited, d) }); err != nil {
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
	// Resume also after a failed suspend, which may still have suspended the
	// device.
	err := p.withStoreKey(context.WithoutCancel(ctx), g.storeID, func() error { return p.dm.Resume(d.name, d.udev) })
	if err != nil && !errors.Is(err, dm.ErrNotFound) {
		p.log.Error(err, "Failed to release held writers; it will be retried", "store", d.name)
		p.unbraked(g)
	}
	took := time.Since(began)
	p.brakes.add("", took)
	p.log.V(2).Info("Writers were held while a store grew", "store", d.name, "for", took)
}

// unbraked makes a convergence resume the store's device after the brake failed to
// resume it.
func (p *Pool) unbraked(g *growth) {
	g.braked.Store(false) // else the convergence leaves the device suspended
	if s := p.current.Load().StoreOf(g.storeID); s != nil {
		p.facts.unsettled.put(s.Of.LV.ID, true)
		p.caretaker.wake()
	}
}

// withStoreKey calls f while nothing else changes the device of the layer's store. If one
// resume interrupts another, the kernel drops a loaded table.
func (p *Pool) withStoreKey(ctx context.Context, layer lvm2.ID, f func() error) error {
	release, err := p.keys.lock(ctx, storeKey(layer))
	if err != nil {
		return err
	}
	defer release()
	return f()
}

// suspend suspends a device without freezing its file system, because a freeze
// would write more.
func (p *Pool) suspend(ctx context.Context, d device) error {
	limited, cancel := context.WithTimeout(ctx, suspendLimit)
	defer cancel()
	return p.dm.Suspend(limited, d.name, dm.SuspendOptions{SkipLockFS: true})
}

// heldBecause explains to users why writers are held, and what to do.
const heldBecause = "the pool is full, so writes to the volume wait until hydration of it, or of volumes restored from it, finishes; to resume sooner, delete volumes or snapshots, or extend the volume group"

// errHeld returns the error for a cut of a volume whose writers are held.
func errHeld(v *view, o *catalog.Volume) error {
	return fmt.Errorf("volume %s/%s: %w: its writers are held: %s", v.VG.Name, o.LV.Name, ErrNoSpace, heldBecause)
}

// isHeld reports whether a suspended volume is held.
func (p *Pool) isHeld(v *view, o *catalog.Volume) bool {
	held := p.facts.holding.has(o.LV.ID)
	return held || p.mustHold(v, o) != nil
}

// heldStill reports whether the device with a fork's content is suspended because
// its writers are held. A convergence loads tables into the device, but does not
// resume it.
func (p *Pool) heldStill(v *view, o *catalog.Volume) bool {
	if !o.Forked() || o.Live() != nil { // else the device below a snapshot origin has the content
		return false
	}
	info, err := p.find(v.topDevice(o.LV))
	return err == nil && info != nil && info.Live && info.Suspended && p.isHeld(v, o)
}

// mustHold returns the store for which a suspended volume must stay suspended,
// because a former process held its writers; nil if there is none.
func (p *Pool) mustHold(v *view, o *catalog.Volume) *catalog.Store {
	stores := []*catalog.Store{v.ForkStore(o)}
	if l := o.Live(); l != nil && !l.Lost {
		stores = append(stores, l.Store(o))
	}
	for _, x := range stores {
		if x == nil || !p.kept(v, x) {
			continue
		}
		s, err := p.snapshotStatus(p.snapshotDevice(v, x).name)
		if err != nil || s.Invalid {
			continue
		}
		if s.Overflow && v.FreeFor(x.LV).Size() == 0 || !s.Overflow && v.growable(x, s) < p.lacks(v, x, s, 0) {
			return x
		}
	}
	return nil
}

// startHold holds the writers of a volume whose store cannot grow. It does nothing
// while the driver itself scrubs the volume. The driver is the writer then and has the
// volume's key, so nobody could end the hold.
func (p *Pool) startHold(s *catalog.Store, now rate) {
	if p.scrubbing(s.Of.LV.Name) {
		return
	}
	volume, g := s.Of.LV.ID, p.newGrowth(s, now)
	if _, first := p.facts.holding.claim(volume, g); first {
		p.hydrator.hurry()
		p.background(func(ctx context.Context) { p.holdVolume(ctx, volume, g) })
	}
}

// holdAgain continues the hold of a volume whose writers a former process held.
func (p *Pool) holdAgain(v *view, o *catalog.Volume) {
	info, err := p.find(v.topDevice(o.LV))
	if err != nil || info == nil || !info.Suspended {
		return
	}
	if s := p.mustHold(v, o); s != nil {
		p.startHold(s, 0)
	}
}

// holdVolume suspends a volume whose store has no room left, until the store can grow by
// g or need not be kept any more. If the pool is closed in the meantime, the volume
// stays suspended: a lost snapshot stays lost, but a held volume continues when the
// pool is opened again.
func (p *Pool) holdVolume(ctx context.Context, volume lvm2.ID, g *growth) {
	defer p.facts.holding.drop(volume)
	began, logged := time.Now(), false
	for {
		v := p.current.Load()
		o := v.Volumes.Get(volume)
		if o == nil {
			return
		}
		if s := v.StoreOf(g.storeID); s == nil || !p.kept(v, s) {
			break
		}
		d := v.topDevice(o.LV)
		if p.scrubbing(o.LV.Name) { // a scrub has begun in the meantime, and has the volume's key
			p.facts.unsettled.put(volume, true)
			if err := p.dm.Resume(d.name, d.udev); err != nil {
				p.log.Error(err, "Failed to resume a volume so that it can be wiped", "volume", o.LV.Name)
			}
			return
		}
		// Suspend in every round, because another operation on the volume may have
		// resumed it.
		err := p.suspend(ctx, d)
		if errors.Is(err, dm.ErrNotFound) {
			return
		}
		if s := v.StoreOf(g.storeID); s != nil && p.growHeld(ctx, v, s, g) {
			break
		}
		if len(v.Trash) > 0 && p.wiper.problem() == nil { // else the wiper pauses after its failure
			p.wiper.wake()
		}
		if !logged && ctx.Err() == nil {
			logged = true
			p.log.Info("Writers are held: "+heldBecause, "volume", o.LV.Name, "err", err)
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

// growHeld extends the store of a held volume by what there is, and reports whether
// its writers may continue.
func (p *Pool) growHeld(ctx context.Context, v *view, s *catalog.Store, g *growth) bool {
	grown := (v.FreeFor(s.LV).Size() > 0 || p.shorter(v, s)) && p.growStore(ctx, g) == nil
	has, err := p.snapshotStatus(p.snapshotDevice(v, s).name)
	if err != nil || has.Invalid || has.Overflow { // the kernel does not tell how full it is
		return grown
	}
	return p.lacks(v, s, has, 0) == 0
}

// letGo resumes a held volume, with the table that is right by now: a fork may have
// been hydrated in the meantime.
func (p *Pool) letGo(ctx context.Context, volume lvm2.ID) error {
	o := p.current.Load().Volumes.Get(volume)
	if o == nil {
		return nil
	}
	return p.onVolume(ctx, o.LV.Name, func(ctx context.Context) error {
		return p.do(ctx, &change{fast: true, what: "release the writers of volume " + o.LV.Name, act: func(ctx context.Context, v *view) error {
			o := v.Volumes.Get(volume)
			if o == nil {
				return nil
			}
			return p.convergeTo(ctx, v, o.LV.Name, demand{goOn: volume})
		}})
	})
}
