package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// plansMost is how many plans a convergence makes at most, beside one for each volume
// that fails: a device may be opened just as it is to be removed.
const plansMost = 5

// demand is what an operation asks for beside what is in use.
type demand struct {
	up, down lvm2.ID // a volume that gets its device, and one that loses it
	content  lvm2.ID // a volume that gets the device by which it reads through its snapshot
	read     lvm2.ID // a layer that gets its device
	goOn     lvm2.ID // a volume whose writers are not held any more
}

// convergence brings the devices of volumes in line with a view.
type convergence struct {
	*Pool
	asked   demand
	view    *view
	members []*volume // of one family; one that another one reads through comes before it
	want    *wantedSet
	stuck   map[lvm2.ID]error // volumes of which a step failed, and why: they stay as they are
	strays  map[string]error  // UUIDs of devices of no volume of which a step failed, and why: they stay, too
	again   map[string]bool   // UUIDs of devices that others had changed when a step came to them
	kernel  kernel            // what it has come to

	behind    map[lvm2.ID]error // volumes whose devices could not follow and will have to: why they stay
	refusedAt map[lvm2.ID]bool  // volumes of which a device was open when it was to be removed

	asLoaded map[string]bool // UUIDs of flat stores' devices that have the right table
}

// converge makes the devices of a volume, and of what it reads through, what v says, as
// far as they are in use, from whatever state they are in. The family's key is held.
// Where that fails the caretaker tries again.
func (p *Pool) converge(ctx context.Context, v *view, lv string) error {
	return p.convergeTo(ctx, v, lv, demand{})
}

// convergeTo does what converge does, and what an operation asks for.
func (p *Pool) convergeTo(ctx context.Context, v *view, lv string, d demand) error {
	if v.volumeByLV(lv) == nil {
		return nil
	}
	return p.convergence(v, lv, d).converge(ctx)
}

// convergence is the one of a volume and of what it reads through.
func (p *Pool) convergence(v *view, lv string, d demand) *convergence {
	c := &convergence{Pool: p, asked: d, view: v}
	for _, name := range slices.Backward(v.family(lv)) {
		c.members = append(c.members, v.volumeByLV(name))
	}
	return c
}

// converge brings the volumes in line, from the first on. If a step fails for one, those
// that do not read through it are brought in line all the same.
func (c *convergence) converge(ctx context.Context) error {
	c.stuck, c.strays, c.again = map[lvm2.ID]error{}, map[string]error{}, map[string]bool{}
	c.refusedAt = map[lvm2.ID]bool{}
	was := map[lvm2.ID]bool{}
	for _, o := range c.members {
		was[o.lv.ID] = c.facts.unsettled.has(o.lv.ID)
		c.facts.unsettled.drop(o.lv.ID)
	}
	errs := []error{guard(c.log, func() error { return c.run(ctx) })}
	if errs[0] != nil && !errors.Is(errs[0], errLeft) { // with that the next try has a lease
		errs = append(errs, guard(c.log, func() error { return c.letUsersGo(ctx) }))
	}
	for _, o := range c.members {
		errs = append(errs, c.stuck[o.lv.ID])
	}
	for _, uuid := range slices.Sorted(maps.Keys(c.strays)) {
		errs = append(errs, c.strays[uuid])
	}
	err := errors.Join(errs...)
	if err == nil {
		c.behind = c.leftBehind(was)
	}
	for _, o := range c.members {
		if err != nil || c.refusedAt[o.lv.ID] || c.behind[o.lv.ID] != nil {
			c.facts.unsettled.put(o.lv.ID, true)
		}
		c.holdAgain(c.view, o)
	}
	return err
}

// run makes plans and carries them out until one was. A loss that it finds is recorded
// before anything else is done.
func (c *convergence) run(ctx context.Context) error {
	k, err := c.letLeftGo(ctx)
	for tries := plansMost + len(c.members); err == nil; tries-- {
		if err = c.losses(k); err == nil {
			err = c.reachable(k)
		}
		if err == nil {
			err = c.carryOut(ctx, c.plan(k), k)
		}
		var loss *unrecordedLoss
		var last error
		switch {
		case err == nil:
			c.noteFlats()
			return errors.Join(c.visible(ctx, k), c.refused())
		case errors.As(err, &loss):
			last = c.recorded(ctx, loss)
		default:
			last = c.failed(ctx, err)
		}
		if last != nil || tries <= 0 {
			return cmp.Or(last, err)
		}
		k, err = c.look()
	}
	return err
}

// plan computes what is wanted, and returns the steps to it.
func (c *convergence) plan(k kernel) []step {
	u := c.view.inUse(c.members, k, false)
	for id, in := range map[lvm2.ID]map[lvm2.ID]bool{c.asked.up: u.active, c.asked.content: u.content, c.asked.read: u.read} {
		if id != "" {
			in[id] = true
		}
	}
	delete(u.active, c.asked.down)
	c.want, c.kernel = c.view.want(c.members, u, c.running(k), k), k
	for _, o := range c.members {
		for _, f := range o.flats {
			if d := c.view.cowDevice(f.lv); !c.asLoaded[d.uuid] {
				c.facts.tables.drop(f.lv.ID) // it may get another table, also by a plan that is not carried out to its end
			}
			if c.flatWriting(f) {
				c.want.kept[c.view.cowDevice(f.lv).uuid] = fmt.Errorf("logical volume %s/%s: %w: it is being written", c.view.vg.Name, f.lv.Name, ErrPrecondition)
			}
		}
	}
	return c.want.plan(c.members, k)
}

func (c *convergence) carryOut(ctx context.Context, plan []step, k kernel) error {
	return (&carrier{Pool: c.Pool, view: c.view, k: k}).carryOut(ctx, plan)
}

// refused says why what is asked for is not there, or stays as it was.
func (c *convergence) refused() error {
	var d device
	var lvs []*lvm2.LV
	v, o := c.view, c.view.volumes[c.asked.up]
	switch fork, l := v.volumes[c.asked.content], v.layers[c.asked.read]; {
	case o != nil:
		if d, lvs = v.topDevice(o.lv), []*lvm2.LV{o.lv}; o.live() != nil {
			lvs = append(lvs, o.live().lv)
		}
	case fork != nil && fork.reading():
		d, lvs = v.device(fork.lv, layerRecovered, udevReal), []*lvm2.LV{fork.lv}
	case fork != nil:
		d, lvs = v.forkDevice(fork.lv), []*lvm2.LV{fork.lv}
	case l != nil:
		d, lvs = v.snapDevice(l.lv), []*lvm2.LV{l.lv}
	default:
		return nil
	}
	x := c.kernel[d.uuid]
	there := x != nil && x.Live
	for _, lv := range lvs {
		for _, layer := range allLayers {
			err := c.want.kept[lvm2.DMUUID(v.vg.ID, lv.ID, layer)]
			if there && o != nil && o.reading() && errors.Is(err, ErrLost) {
				return nil // who reads it fails to
			}
			if there && o != nil && errors.Is(err, ErrLost) && c.want.kept[d.uuid] == nil {
				continue // what is read of its history, which it needs no more itself
			}
			if err != nil {
				return err
			}
		}
	}
	if !there {
		return fmt.Errorf("device %s: %w: what it lies on cannot be made", d.name, errors.Join(c.keptBelow()...))
	}
	return nil
}

// keptBelow returns why devices of the volumes could not be made.
func (c *convergence) keptBelow() (errs []error) {
	for _, uuid := range slices.Sorted(maps.Keys(c.want.kept)) {
		if err := c.want.kept[uuid]; !slices.ContainsFunc(errs, func(x error) bool { return x.Error() == err.Error() }) {
			errs = append(errs, err)
		}
	}
	return errs
}

// look asks the kernel for the family's devices.
func (c *convergence) look() (kernel, error) {
	ids := map[string]bool{}
	for _, o := range c.members {
		for _, lv := range o.parts() {
			ids[string(lv.ID)] = true
		}
	}
	for _, lv := range c.view.trash {
		ids[string(lv.ID)] = true
	}
	c.asLoaded = map[string]bool{}
	known, err := c.lookAtFlats(ids)
	if err != nil {
		return nil, err
	}
	k, err := c.lookAtLVs(c.view, ids)
	if err != nil {
		return nil, err
	}
	maps.Copy(k, known)
	if k = c.view.split(k)[c.view.root(c.members[0].lv.Name)]; k == nil {
		k = kernel{}
	}
	if o := c.view.volumes[c.asked.down]; o != nil {
		if top := k[c.view.topDevice(o.lv).uuid]; top != nil {
			top.OpenCount = 0 // the kernel refuses to remove it, if it stays open
		}
	}
	return k, nil
}

// lookAtFlats asks for devices of flat stores that have the table that they should have,
// as far as only this process changes it, and takes them out of ids. Such a table has two
// pieces for each area, so it is not read.
func (c *convergence) lookAtFlats(ids map[string]bool) (kernel, error) {
	k := kernel{}
	for _, o := range c.members {
		for _, f := range o.flats {
			if c.view.layers[f.reads] == nil || !c.facts.tables.has(f.lv.ID) {
				continue
			}
			d := c.view.cowDevice(f.lv)
			info, err := c.find(d)
			if err != nil {
				return nil, err
			}
			if c.Pool.asLoaded(c.view, o, f, info) {
				k[d.uuid] = &kernelDevice{Info: *info, uuid: d.uuid}
				c.asLoaded[d.uuid] = true
				delete(ids, string(f.lv.ID))
			}
		}
	}
	return k, nil
}

// noteFlats takes note of the flat stores that are read by, and of their tables.
func (c *convergence) noteFlats() {
	for _, o := range c.members {
		for _, f := range o.flats {
			w := c.want.wantedAt(c.view.cowDevice(f.lv))
			d := c.kernel[w.uuid]
			if w.of == nil || d == nil {
				continue
			}
			c.notAwaited(f)
			if !c.asLoaded[w.uuid] {
				c.facts.tables.put(f.lv.ID, flatTable{d.Device, len(w.table), c.view.flatParts(o, f), c.view.disks()})
			}
		}
	}
}

// letLeftGo lets the devices below volumes go on that somebody has left suspended, and
// returns what the kernel has then. Nothing can be loaded, suspended or asked for its
// status before: what lies above waits for I/O inside it.
func (c *convergence) letLeftGo(ctx context.Context) (kernel, error) {
	k, err := c.look()
	if err != nil {
		return nil, err
	}
	left := c.view.want(c.members, use{}, running{held: c.braked()}, k).leftSuspended(k)
	for _, s := range left {
		if s.do == stepResume {
			c.log.Info("A former process has left a device suspended; it goes on", "device", s.name)
		}
		err := c.carryOut(ctx, []step{s}, k)
		if errors.Is(err, errLeft) { // LVM2 may be about to resume the device with a table of its own
			return nil, err
		}
		if err != nil {
			c.log.Error(err, "Letting a device go on; it is tried again")
		}
	}
	if len(left) > 0 {
		return c.look()
	}
	return k, nil
}

// running says what the driver does with the family's devices.
func (c *convergence) running(k kernel) running {
	r := running{windows: map[lvm2.ID]window{}, copied: map[lvm2.ID]string{}, held: c.braked(), stuck: c.stuck, strays: c.strays, asLoaded: c.asLoaded}
	for _, o := range c.members {
		switch w := c.hydrator.window(o.lv.ID); {
		case w == nil:
		case o.forked():
			r.windows[o.lv.ID] = *w
		default: // the last commit had failed for us only, or an interruption left it
			c.hydrator.setWindow(o.lv.ID, nil)
		}
		for _, layer := range []string{layerWindow0, layerWindow1} {
			if d := k[c.view.device(o.lv, layer, udevReal).uuid]; d != nil && d.Live && c.copied(o, d) {
				r.copied[o.lv.ID] = layer
			}
		}
		top := k[c.view.topDevice(o.lv).uuid]
		ends := o.lv.ID == c.asked.down || o.lv.ID == c.asked.goOn
		if top != nil && top.Suspended && !ends && c.isHeld(c.view, o) {
			r.held[top.uuid] = true
		}
		for _, l := range o.layers {
			if c.folder.writes(l.lv.ID) {
				r.heir = l.lv.ID
			}
		}
	}
	return r
}

// copied says whether a window's device holds nothing back, and is of no use any more.
func (c *convergence) copied(o *volume, d *kernelDevice) bool {
	if len(d.table) != 1 {
		return false
	}
	m, is := d.table[0].Target.(dm.Mirror)
	if !is || len(m.Legs) != 2 || o.forked() && !o.hydrated.has(span{m.Legs[0].Offset, d.table.Length()}) {
		return false
	}
	s, err := c.hydrator.mirror(d.Name)
	return err == nil && s.Synced()
}

// braked returns the devices of stores whose writers are held while these grow.
func (c *convergence) braked() map[string]bool {
	held := map[string]bool{}
	for _, o := range c.members {
		for _, lv := range o.parts() {
			if g, growing := c.facts.growing.get(lv.ID); growing && g.braked.Load() {
				held[c.view.cowDevice(lv).uuid] = true
			}
		}
	}
	return held
}

// visible sees to it that the nodes are there that users open, also where nothing
// changed: an interruption may have come just before that.
func (c *convergence) visible(ctx context.Context, k kernel) error {
	var errs []error
	for i := range c.want.devices {
		d := &c.want.devices[i]
		if x := k[d.uuid]; x != nil && x.Live && (d.layer != nil || c.want.isTop(d)) {
			errs = append(errs, c.node(ctx, device{name: x.Name}, x.Device))
		}
	}
	return errors.Join(errs...)
}
