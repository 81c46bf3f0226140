package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

const (
	repairPatience = 5 * time.Second // how long a pool that is opened waits for the repair of its volumes
	repairsAtOnce  = 64
)

// families returns those of v that have devices in the kernel, by their roots.
func (v *view) families(all []dm.ListEntry) map[string][]lvm2.ID {
	has := map[string]bool{}
	for _, e := range all {
		if id, _, ours := splitUUID(v.vg.ID, e.UUID); ours {
			has[id] = true
		}
	}
	out, active := map[string][]lvm2.ID{}, map[string]bool{}
	for id, o := range v.volumes {
		root := v.root(o.lv.Name)
		out[root] = append(out[root], id)
		for _, lv := range o.parts() {
			active[root] = active[root] || has[string(lv.ID)]
		}
	}
	maps.DeleteFunc(out, func(root string, _ []lvm2.ID) bool { return !active[root] })
	return out
}

// parts returns the logical volumes that make o, those that may have devices.
func (v *volume) parts() []*lvm2.LV {
	parts := append([]*lvm2.LV{v.lv}, storesOf(v.layers)...)
	if v.fork != nil {
		parts = append(parts, v.fork.lv)
	}
	for _, f := range v.flats {
		parts = append(parts, f.lv)
	}
	return parts
}

// repairFamilies brings the devices of all volumes in line with the metadata, in
// the background. Who uses one of them waits for that: its key is taken when this
// returns. The channel is closed when all is done.
func (p *Pool) repairFamilies(ctx context.Context, v *view) <-chan struct{} {
	done := make(chan struct{})
	var running, families sync.WaitGroup
	defer func() {
		go func() {
			running.Wait()
			close(done)
		}()
	}()
	all, err := p.dm.List()
	if err != nil {
		p.log.Error(err, "Looking for devices that an interruption left")
		return done
	}
	turn := make(chan struct{}, repairsAtOnce)
	begin := func(release func(), what string, act func(ctx context.Context, v *view) error) {
		running.Add(1)
		begun := p.background(func(ctx context.Context) {
			defer running.Done()
			defer release()
			turn <- struct{}{}
			defer func() { <-turn }()
			if err := p.do(ctx, &change{what: "repair " + what, act: act}); err != nil && ctx.Err() == nil {
				// One volume in a bad state must not keep the others from being served.
				p.log.Error(err, "Repair left something undone; it is tried again")
			}
		})
		if !begun {
			release()
			running.Done()
		}
	}
	for root, members := range v.families(all) {
		key, err := p.keys.lock(ctx, lvKey(root)) // nobody has it yet
		if err != nil {
			return done
		}
		families.Add(1)
		release := func() { key(); families.Done() }
		begin(release, "volume "+root, func(ctx context.Context, v *view) error { return p.repairFamily(ctx, v, members) })
	}
	if len(v.trash) > 0 {
		running.Add(1)
		begun := p.background(func(ctx context.Context) {
			defer running.Done()
			families.Wait() // they let go what deleted volumes lie on, under their keys
			if err := p.do(ctx, &change{what: "repair deleted volumes", act: p.repairTrash}); err != nil && ctx.Err() == nil {
				p.log.Error(err, "Repair left something undone; it is tried again")
			}
		})
		if !begun {
			running.Done()
		}
	}
	return done
}

// repairTrash lets devices of deleted volumes go on and removes those that nobody uses.
func (p *Pool) repairTrash(ctx context.Context, v *view) error {
	trash := map[string]bool{}
	for _, lv := range v.trash {
		trash[string(lv.ID)] = true
	}
	return errors.Join(p.letGoOf(v, trash, false), p.sweep(ctx, v), p.settleSoon(v))
}

// repairFamily does what is to be done for a volume and all that read through it,
// directly or not: their devices lie on each other. The key of the first is held.
func (p *Pool) repairFamily(ctx context.Context, v *view, ids []lvm2.ID) error {
	var members []*volume
	lvs := map[string]bool{}
	for _, id := range ids {
		o := v.volumes[id]
		if o == nil {
			continue
		}
		members = append(members, o)
		for _, lv := range o.parts() {
			lvs[string(lv.ID)] = true
		}
	}
	errs := []error{p.letGoBelow(v, lvs)}
	each := func(what string, f func(o *volume) error) {
		for _, o := range members {
			if err := f(o); err != nil {
				p.facts.unsettled.put(o.lv.ID, true)
				errs = append(errs, fmt.Errorf("%svolume %s: %w", what, o.lv.Name, err))
			}
		}
	}
	each("", func(o *volume) error { // they use what others have
		switch {
		case o.odd != nil:
			return nil // where its content is, is not known
		case o.forked():
			return p.hydrator.shutLeft(ctx, v, o)
		}
		return p.notForked(ctx, v, o)
	})
	each("", func(o *volume) error { return p.settle(ctx, v, o.lv.Name) })
	each("history of ", func(o *volume) error { return p.chainDown(ctx, v, o) })
	each("", func(o *volume) error {
		p.holdAgain(v, o)
		return p.letGoTop(v, o)
	})
	if len(v.trash) > 0 { // an interrupted fold left trash that was stacked on layers
		errs = append(errs, p.sweep(ctx, v))
		each("history of ", func(o *volume) error { return p.chainDown(ctx, v, o) })
	}
	return errors.Join(errs...)
}

// letGoBelow lets the devices below volumes go on that a former process has left
// suspended, each with the table that it has: those of the given logical volumes,
// and what these lie on. Nothing can be loaded, suspended or asked for its status
// before: what lies above waits for I/O inside it. So the lowest one goes first.
func (p *Pool) letGoBelow(v *view, lvs map[string]bool) error { return p.letGoOf(v, lvs, true) }

// letGoOf does what letGoBelow does; without below only for the logical volumes' own
// devices: what they lie on may be in use under a key.
func (p *Pool) letGoOf(v *view, lvs map[string]bool, below bool) error {
	all, err := p.dm.List()
	if err != nil {
		return err
	}
	known := map[dm.Device]dm.ListEntry{}
	for _, e := range all {
		if _, _, ours := splitUUID(v.vg.ID, e.UUID); ours {
			known[e.Device] = e
		}
	}
	var errs []error
	seen := map[dm.Device]bool{}
	var visit func(e dm.ListEntry)
	visit = func(e dm.ListEntry) {
		if seen[e.Device] {
			return
		}
		seen[e.Device] = true
		deps, err := p.dm.Deps(e.Name)
		if err != nil && !errors.Is(err, dm.ErrNotFound) {
			errs = append(errs, err)
		}
		for _, d := range deps {
			if lower, ours := known[d]; ours {
				visit(lower)
			}
		}
		if id, layer, _ := splitUUID(v.vg.ID, e.UUID); (below || lvs[id]) && (layer != "" || v.volumes[lvm2.ID(id)] == nil) {
			errs = append(errs, p.letGoOne(e.Name))
		}
	}
	for _, e := range known {
		if id, _, _ := splitUUID(v.vg.ID, e.UUID); lvs[id] {
			visit(e)
		}
	}
	return errors.Join(errs...)
}

// letGoOne lets a device go on, if it is suspended, with the table that it has.
func (p *Pool) letGoOne(name string) error {
	info, err := p.dm.Info(name)
	if errors.Is(err, dm.ErrNotFound) || err == nil && (!info.Suspended || !info.Live) {
		return nil
	}
	if err == nil && info.Loaded {
		err = p.dm.Clear(name)
	}
	if err != nil {
		return err
	}
	p.log.Info("A former process has left a device suspended; it goes on", "device", name)
	return p.dm.Resume(name, 0)
}

// letGoTop does that for a volume's own device, whatever became of its repair,
// unless its writers are held.
func (p *Pool) letGoTop(v *view, o *volume) error {
	info, err := p.find(v.topDevice(o.lv))
	if err != nil || info == nil || !info.Suspended || p.isHeld(v, o) {
		return err
	}
	return p.letGoOne(info.Name)
}
