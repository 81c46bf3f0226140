package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// plansMost is the largest number of plans of a convergence, not counting one plan for
// each volume that fails. A plan fails, for example, if a process opens a device just
// before it is removed.
const plansMost = 5

// demand names the devices that an operation needs beside the devices in use.
type demand struct {
	up, down lvm2.ID // volume whose device is to be made, or removed
	content  lvm2.ID // volume whose device for reading through its snapshot is to be made
	read     lvm2.ID // layer whose device is to be made
	goOn     lvm2.ID // volume whose writers are no longer held
}

// convergence brings the devices of volumes in line with a view.
type convergence struct {
	*Pool
	asked   demand
	view    *view
	members []*catalog.Volume // of one family; a volume comes before the volumes that read through it
	want    *wantedSet
	stuck   map[lvm2.ID]error // volumes with a failed step, and its error; they are left as they are
	strays  map[string]error  // UUIDs of devices without a volume that had a failed step, and its error; they are left too
	again   map[string]bool   // UUIDs of devices that another process had changed before their step
	kernel  kernel            // the devices after the steps so far

	behind    map[lvm2.ID]error // volumes whose devices do not match the view yet, and the reason
	refusedAt map[lvm2.ID]bool  // volumes with a device that could not be removed because it was open

	before *catalog.Volume // stop before the window of this volume; nil to carry out everything
	rest   []step          // the steps of that window

	asLoaded map[string]bool // UUIDs of flat stores' devices that have the right table
}

// converge brings the devices of the volume lv, and of the volumes that it reads through,
// in line with v, from any state. It makes only devices that are in use. The caller holds
// the key of the family. If converge fails, the caretaker retries.
func (p *Pool) converge(ctx context.Context, v *view, lv string) error {
	return p.convergeTo(ctx, v, lv, demand{})
}

// convergeTo does the work of converge, and also fulfils d.
func (p *Pool) convergeTo(ctx context.Context, v *view, lv string, d demand) error {
	if v.VolumeByLV(lv) == nil {
		return nil
	}
	return p.convergence(v, lv, d).converge(ctx)
}

// convergence returns the convergence of the volume lv and of the volumes that it reads
// through.
func (p *Pool) convergence(v *view, lv string, d demand) *convergence {
	c := &convergence{Pool: p, asked: d, view: v}
	for _, name := range slices.Backward(v.Family(lv)) {
		c.members = append(c.members, v.VolumeByLV(name))
	}
	return c
}

// converge brings the volumes in line, in the order of members. If a step fails for a
// volume, the volumes that do not read through it are still brought in line.
func (c *convergence) converge(ctx context.Context) error {
	c.stuck, c.strays, c.again = map[lvm2.ID]error{}, map[string]error{}, map[string]bool{}
	c.refusedAt = map[lvm2.ID]bool{}
	was := map[lvm2.ID]bool{}
	for _, o := range c.members {
		was[o.LV.ID] = c.facts.unsettled.has(o.LV.ID)
		c.facts.unsettled.drop(o.LV.ID)
	}
	errs := []error{guard(c.log, func() error { return c.run(ctx) })}
	if errs[0] != nil && !errors.Is(errs[0], errLeft) { // after errLeft the next convergence does this with a lease of its own
		errs = append(errs, guard(c.log, func() error { return c.letUsersGo(ctx) }))
	}
	for _, o := range c.members {
		errs = append(errs, c.stuck[o.LV.ID])
	}
	for _, uuid := range slices.Sorted(maps.Keys(c.strays)) {
		errs = append(errs, c.strays[uuid])
	}
	err := errors.Join(errs...)
	if err == nil {
		c.behind = c.leftBehind(was)
	}
	for _, o := range c.members {
		if err != nil || c.refusedAt[o.LV.ID] || c.behind[o.LV.ID] != nil {
			c.facts.unsettled.put(o.LV.ID, true)
		}
		c.holdAgain(c.view, o)
	}
	return err
}

// run makes and carries out plans until a plan succeeds. It records a loss that it finds
// before it does anything else.
func (c *convergence) run(ctx context.Context) error {
	k, err := c.letLeftGo(ctx)
	for tries := plansMost + len(c.members); err == nil; tries-- {
		if err = c.losses(k); err == nil {
			err = c.reachable(k)
		}
		if err == nil {
			err = c.carryOut(ctx, c.upToWindow(c.plan(k)), k)
		}
		var loss *unrecordedLoss
		var last error
		switch {
		case err == nil:
			for id := range c.want.open {
				c.refusedAt[id] = true
			}
			if c.rest == nil { // otherwise the plan is not whole yet
				c.noteFlats()
			}
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

// plan computes the wanted devices and returns the steps that make them.
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
		for _, f := range o.Flats {
			if d := c.view.cowDevice(f.LV); !c.asLoaded[d.uuid] {
				c.facts.tables.drop(f.LV.ID) // even an incomplete plan may load another table
			}
			if c.flatWriting(f) {
				c.want.kept[c.view.cowDevice(f.LV).uuid] = fmt.Errorf("logical volume %s/%s: %w: it is being written", c.view.VG.Name, f.LV.Name, ErrPrecondition)
			}
		}
	}
	return c.want.plan(c.members, k)
}

func (c *convergence) carryOut(ctx context.Context, plan []step, k kernel) error {
	return (&carrier{Pool: c.Pool, view: c.view, k: k}).carryOut(ctx, plan)
}

// refused returns the reason if a device that the operation asked for was not made or
// changed.
func (c *convergence) refused() error {
	var d device
	var lvs []*lvm2.LV
	v, o := c.view, c.view.Volumes.Get(c.asked.up)
	switch fork, l := v.Volumes.Get(c.asked.content), v.Layers.Get(c.asked.read); {
	case o != nil:
		if d, lvs = v.topDevice(o.LV), []*lvm2.LV{o.LV}; o.Live() != nil {
			lvs = append(lvs, o.Live().LV)
		}
	case fork != nil && fork.Reading():
		d, lvs = v.device(fork.LV, layerRecovered, udevReal), []*lvm2.LV{fork.LV}
	case fork != nil:
		d, lvs = v.forkDevice(fork.LV), []*lvm2.LV{fork.LV}
	case l != nil:
		d, lvs = v.snapDevice(l.LV), []*lvm2.LV{l.LV}
	default:
		return nil
	}
	x := c.kernel[d.uuid]
	there := x != nil && x.Live
	for _, lv := range lvs {
		for _, layer := range allLayers {
			err := c.want.kept[lvm2.DMUUID(v.VG.ID, lv.ID, layer)]
			if there && o != nil && o.Reading() && errors.Is(err, ErrLost) {
				return nil // its reads fail
			}
			if there && o != nil && errors.Is(err, ErrLost) && c.want.kept[d.uuid] == nil {
				continue // only snapshots of the volume are lost, not the volume
			}
			if err != nil {
				return err
			}
		}
	}
	if !there {
		return fmt.Errorf("device %s: %w: the devices below it cannot be created", d.name, errors.Join(c.keptBelow()...))
	}
	return nil
}

// keptBelow returns the reasons for which devices of the volumes could not be made.
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
		for _, lv := range o.Parts() {
			ids[string(lv.ID)] = true
		}
	}
	for _, lv := range c.view.Trash {
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
	if k = c.view.split(k)[c.view.Root(c.members[0].LV.Name)]; k == nil {
		k = kernel{}
	}
	if o := c.view.Volumes.Get(c.asked.down); o != nil {
		if top := k[c.view.topDevice(o.LV).uuid]; top != nil {
			top.OpenCount = 0 // plan its removal; the kernel refuses it if the device is open
		}
	}
	return k, nil
}

// lookAtFlats looks up the devices of flat stores whose active table is right, provided that
// no other process has changed it, and removes them from ids. It does not read these tables,
// because a table has two segments for each area.
func (c *convergence) lookAtFlats(ids map[string]bool) (kernel, error) {
	k := kernel{}
	for _, o := range c.members {
		for _, f := range o.Flats {
			if c.view.Layers.Get(f.Reads) == nil || !c.facts.tables.has(f.LV.ID) {
				continue
			}
			d := c.view.cowDevice(f.LV)
			info, err := c.find(d)
			if err != nil {
				return nil, err
			}
			if c.Pool.asLoaded(c.view, o, f, info) {
				k[d.uuid] = &kernelDevice{Info: *info, uuid: d.uuid}
				c.asLoaded[d.uuid] = true
				delete(ids, string(f.LV.ID))
			}
		}
	}
	return k, nil
}

// noteFlats records the flat stores that are now read, and their tables.
func (c *convergence) noteFlats() {
	for _, o := range c.members {
		for _, f := range o.Flats {
			w := c.want.wantedAt(c.view.cowDevice(f.LV))
			d := c.kernel[w.uuid]
			if w.of == nil || d == nil {
				continue
			}
			c.notAwaited(f)
			if !c.asLoaded[w.uuid] {
				c.facts.tables.put(f.LV.ID, flatTable{d.Device, len(w.table), c.view.FlatParts(o, f), c.view.disks()})
			}
		}
	}
}

// letLeftGo resumes the devices below volumes that another process left suspended, and
// returns the kernel's devices after this. This must come before any load, suspend or
// status call, because the devices above wait for I/O inside the suspended device.
func (c *convergence) letLeftGo(ctx context.Context) (kernel, error) {
	k, err := c.look()
	if err != nil {
		return nil, err
	}
	left := c.view.want(c.members, use{}, running{held: c.braked()}, k).leftSuspended(k)
	for _, s := range left {
		if s.do == stepResume {
			c.log.Info("Resuming a device that a former process left suspended", "device", s.name)
		}
		err := c.carryOut(ctx, []step{s}, k)
		if errors.Is(err, errLeft) { // LVM2 may be about to resume the device with a table of its own
			return nil, err
		}
		if err != nil {
			c.log.Error(err, "Failed to resume a device; it will be retried")
		}
	}
	if len(left) > 0 {
		return c.look()
	}
	return k, nil
}

// running returns the driver's own work on the family's devices.
func (c *convergence) running(k kernel) running {
	r := running{windows: map[lvm2.ID]window{}, copied: map[lvm2.ID]string{}, held: c.braked(), stuck: c.stuck, strays: c.strays, asLoaded: c.asLoaded}
	for _, o := range c.members {
		switch w := c.hydrator.window(o.LV.ID); {
		case w == nil:
		case o.Forked():
			r.windows[o.LV.ID] = *w
		default: // left over from an interruption, or from a commit that reached the disk but returned an error
			c.hydrator.setWindow(o.LV.ID, nil)
		}
		for _, layer := range []string{layerWindow0, layerWindow1} {
			if d := k[c.view.device(o.LV, layer, udevReal).uuid]; d != nil && d.Live && c.copied(o, d) {
				r.copied[o.LV.ID] = layer
			}
		}
		top := k[c.view.topDevice(o.LV).uuid]
		ends := o.LV.ID == c.asked.down || o.LV.ID == c.asked.goOn
		if top != nil && top.Suspended && !ends && c.isHeld(c.view, o) {
			r.held[top.uuid] = true
		}
		for _, l := range o.Layers {
			if c.folder.writes(l.LV.ID) {
				r.heir = l.LV.ID
			}
		}
	}
	return r
}

// copied reports whether a window's mirror d has copied everything and is no longer needed.
func (c *convergence) copied(o *catalog.Volume, d *kernelDevice) bool {
	if len(d.table) != 1 {
		return false
	}
	m, is := d.table[0].Target.(dm.Mirror)
	if !is || len(m.Legs) != 2 || o.Forked() && !o.Hydrated.Has(catalog.Span{Start: m.Legs[0].Offset, Length: d.table.Length()}) {
		return false
	}
	s, err := c.hydrator.mirror(d.Name)
	return err == nil && s.Synced()
}

// braked returns the devices of stores that are suspended, to hold writers, while they grow.
func (c *convergence) braked() map[string]bool {
	held := map[string]bool{}
	for _, o := range c.members {
		for _, lv := range o.Parts() {
			if g, growing := c.facts.growing.get(lv.ID); growing && g.braked.Load() {
				held[c.view.cowDevice(lv).uuid] = true
			}
		}
	}
	return held
}

// visible makes the device nodes that users open. It does so even if no device changed,
// because an interruption may have come before the nodes were made.
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
