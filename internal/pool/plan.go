package pool

import (
	"maps"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// A plan is an ordered list of steps that turn the devices of a family into the wanted
// devices. It is computed only from the wanted devices and from the kernel's devices. If
// the driver is interrupted at any step, the next plan continues from the devices left.
//
// The steps obey the order rules of the kernel's snapshots. A plan that breaks one of
// them costs data:
//
//   - Devices that were left suspended are resumed first, the lowest device first. The
//     devices above wait for I/O inside the suspended device, and the driver would too.
//   - A device is created and loaded after the devices below it.
//   - While a volume is suspended (its window), the driver reads the used count of the
//     former newest layer, then resumes the new snapshot, then the blocks, and the volume
//     itself last, because the kernel computes at this resume how it splits writes.
//   - An older layer is loaded above the new layer only after the window.
//   - A mirror is resumed only while its user is suspended.
//   - Unwanted devices are removed last, the highest device first.

// stepKind is the kind of a step.
type stepKind string

// The kinds of steps.
const (
	stepClear   stepKind = "clear"   // drop the inactive table
	stepCreate  stepKind = "create"  // create a device without a table
	stepLoad    stepKind = "load"    // load a table into the inactive slot
	stepSuspend stepKind = "suspend" // suspend the device
	stepResume  stepKind = "resume"  // resume the device; a loaded table becomes active
	stepUsed    stepKind = "used"    // read how much of its store a layer uses
	stepRevive  stepKind = "revive"  // make the store of a fork valid again after the kernel marked it invalid
	stepRename  stepKind = "rename"
	stepRemove  stepKind = "remove"
)

// step is one step of a plan.
type step struct {
	do stepKind
	device
	table    symbolic        // to load
	readOnly bool            // to load
	noFlush  bool            // to suspend without a flush, because I/O held back by a mirror would never end
	to       string          // the new name
	of       *catalog.Volume // owner of the device; nil if unknown
	layer    *catalog.Layer  // layer of the snapshot device; nil for other devices
}

// planner makes a plan.
type planner struct {
	*wantedSet
	k       kernel
	opened  map[string]int // open counts without the opens by devices of the group
	steps   []step
	pending map[string]bool // snapshots and blocks that wait for their volume's window
	ran     map[string]bool // devices that a step resumes
	missing map[string]bool // devices that cannot be made because a device below is missing
}

// plan returns the steps that turn the kernel's devices of the family (see split) into
// the wanted devices.
func (w *wantedSet) plan(members []*catalog.Volume, k kernel) []step {
	p := &planner{
		wantedSet: w, k: maps.Clone(k), opened: k.opened(),
		pending: map[string]bool{}, ran: map[string]bool{}, missing: map[string]bool{},
	}
	p.steps = w.leftSuspended(k)
	for _, s := range p.steps {
		p.ran[s.uuid] = true
	}
	p.rename(p.misnamed(nil))
	for _, o := range members {
		p.shutWindows(o)
	}
	p.letTopsGo(members)
	for i := range w.devices {
		if d := &w.devices[i]; p.possible(d) {
			p.bring(d)
		} else if k[d.uuid] == nil {
			p.missing[d.uuid] = true
		}
	}
	p.remove()
	return p.steps
}

func (p *planner) add(do stepKind, w *wanted) {
	s := step{do: do, device: w.device, of: w.of, layer: w.layer}
	switch do {
	case stepLoad:
		s.table, s.readOnly = w.table, w.readOnly
		// A writable frozen store stays writable. The table never makes a volume's own
		// device read-only, because publishing a writer would not make it writable again.
		if d := p.k[w.uuid]; w.asIs && w.readOnly && d != nil && d.Live {
			s.readOnly = d.ReadOnly
		}
	case stepResume:
		p.ran[w.uuid] = true
	}
	p.steps = append(p.steps, s)
}

// right reports whether the kernel's device d matches the wanted device w.
func (p *planner) right(w *wanted, d *kernelDevice) bool {
	table, complete := w.table.bind(p.k.number)
	have := d.table
	if p.held[w.uuid] {
		have = d.goesOn()
	}
	return d.Live && complete && have.Equal(table) && (d.ReadOnly == w.readOnly || w.asIs) || d.Live && w.once
}

// leftSuspended returns the steps that resume, with their active tables, the devices that
// another process left suspended, the lowest first. It leaves out the volumes' own
// devices, which may be in the middle of a change. Of w it uses only held, stuck and
// strays.
func (w *wantedSet) leftSuspended(k kernel) (steps []step) {
	for _, d := range k.bottomUp() {
		id, layer, _ := catalog.SplitUUID(w.VG.ID, d.uuid)
		of := w.OwnerOf(lvm2.ID(id))
		if top := of != nil && layer == "" && of.LV.ID == lvm2.ID(id); !d.Suspended || !d.Live || top || w.held[d.uuid] {
			continue
		}
		s := step{device: device{name: d.Name, uuid: d.uuid}, of: of}
		if of != nil && w.stuck[of.LV.ID] != nil || w.strays[d.uuid] != nil {
			continue
		}
		if d.Loaded {
			s.do = stepClear
			steps = append(steps, s)
		}
		s.do = stepResume
		steps = append(steps, s)
	}
	return steps
}

// letTopsGo resumes suspended top devices that the plan otherwise leaves as they are.
func (p *planner) letTopsGo(members []*catalog.Volume) {
	for _, o := range members {
		d := p.topDevice(o.LV)
		if x := p.k[d.uuid]; x != nil && x.Suspended && x.Live && !p.held[d.uuid] && p.wantedAt(d).of == nil {
			p.letGoTop(&wanted{device: device{name: x.Name, uuid: x.uuid, udev: d.udev}, of: o}, x)
		}
	}
}

// bring adds the steps that make the device w.
func (p *planner) bring(w *wanted) {
	d := p.k[w.uuid]
	if p.isTop(w) && w.of.Live() != nil && !w.of.Reading() {
		p.window(w, d)
		return
	}
	if d != nil && w.mirrors() && !p.right(w, d) && p.idle(d) { // left over from an earlier window
		p.steps = append(p.steps, p.removal(d))
		delete(p.k, w.uuid)
		d = nil
	}
	switch {
	case d == nil:
		p.add(stepCreate, w)
		p.load(w, false)
		p.start(w)
	case !p.right(w, d) && w.mirrors():
		p.load(w, d.Loaded && !p.ran[w.uuid])
		p.start(w)
	case !p.right(w, d):
		p.load(w, d.Loaded && !p.ran[w.uuid])
		switch {
		case !d.Live:
			p.start(w)
		case p.held[w.uuid] && p.isTop(w): // the end of the hold resumes it with the loaded table
			p.resumeBelow(w)
		case p.inWindow(w) && !p.apart(w, d):
			p.pending[w.uuid] = true
		default:
			p.swap(w, d)
		}
	case w.uuid == p.contentDevice(w.of).uuid && p.mirrorWaits(w.of):
		if p.held[w.uuid] {
			p.resumeBelow(w)
		} else {
			p.swap(w, d)
		}
	case p.isTop(w) && d.Suspended && !p.held[w.uuid]:
		p.letGoTop(w, d)
	case d.Loaded && !d.Suspended:
		p.add(stepClear, w)
	}
}

// load loads a device's table. If w.stretch is set, the store below is longer while the
// kernel constructs the snapshot.
func (p *planner) load(w *wanted, loaded bool) {
	if loaded {
		p.add(stepClear, w)
	}
	d := p.k[w.uuid]
	i := slices.IndexFunc(p.devices, func(x wanted) bool { return w.stretch != nil && x.uuid == w.table[0].on[1] })
	if i < 0 || d != nil && d.Live {
		p.add(stepLoad, w)
		return
	}
	store := p.devices[i]
	long := store
	long.table = w.stretch
	for _, x := range []*wanted{&long, w, &store} {
		p.add(stepLoad, x)
		if x != w {
			p.add(stepResume, x)
		}
	}
}

// start resumes a new device, unless it must wait. A snapshot waits for the window of its
// volume. A mirror waits until its user is suspended or created.
func (p *planner) start(w *wanted) {
	mirror := w.mirrors() && p.wantedAt(p.contentDevice(w.of)).of != nil
	if mirror || w.layer != nil && p.inWindow(w) {
		p.pending[w.uuid] = true
		return
	}
	p.resumeBelow(w)
	p.add(stepResume, w)
}

// mirrors reports whether the device is a mirror, which copies as soon as it is resumed.
func (w *wanted) mirrors() bool {
	if len(w.table) == 0 {
		return false
	}
	_, is := w.table[0].target.(dm.Mirror)
	return is
}

// mirrorWaits reports whether a mirror of o waits until the device above it is suspended.
func (p *planner) mirrorWaits(o *catalog.Volume) bool {
	return slices.ContainsFunc(p.devices, func(x wanted) bool { return x.of == o && x.mirrors() && p.pending[x.uuid] })
}

// idle reports whether no device lies on d and nobody has d open.
func (p *planner) idle(d *kernelDevice) bool {
	for _, x := range p.k {
		if slices.Contains(x.uses(), d.Device) {
			return false
		}
	}
	return p.opened[d.uuid] <= 0
}

// possible reports whether every device below w exists or is made before w.
func (p *planner) possible(w *wanted) bool {
	if live := w.of.Live(); live != nil && p.isTop(w) && !w.of.Reading() { // the kernel copies originals into the live layer
		if snap := p.snapDevice(live.LV); p.k[snap.uuid] == nil && (p.missing[snap.uuid] || p.wantedAt(snap).of == nil) {
			return false
		}
	}
	return !slices.ContainsFunc(w.table.below(), func(uuid string) bool {
		return p.k[uuid] == nil && (p.missing[uuid] || p.wantedAt(device{uuid: uuid}).of == nil)
	})
}

// swap makes the loaded table of w active, and resumes the mirrors that wait for w.
func (p *planner) swap(w *wanted, d *kernelDevice) {
	if !d.Suspended || p.ran[w.uuid] {
		p.add(stepSuspend, w)
	}
	p.resumeBelow(w)
	p.add(stepResume, w)
}

// resumeBelow resumes the waiting mirrors below the suspended device w.
func (p *planner) resumeBelow(w *wanted) {
	for i := range p.devices {
		x := &p.devices[i]
		if x.mirrors() && x.of == w.of && p.pending[x.uuid] {
			delete(p.pending, x.uuid)
			p.add(stepResume, x)
		}
	}
}

func (w *wantedSet) isTop(d *wanted) bool { return d.uuid == w.topDevice(d.of.LV).uuid }

// inWindow reports whether w may change only while its volume is suspended. This holds for
// the live layer's snapshot and for the blocks, while somebody may write to the volume
// through its own device.
func (p *planner) inWindow(w *wanted) bool {
	top := p.k[p.topDevice(w.of.LV).uuid]
	if top == nil || !top.Live || w.of.Reading() || w.of.Live() == nil {
		return false
	}
	return w.layer != nil && w.layer == w.of.Live() || w.uuid == p.realDevice(w.of.LV).uuid
}

// apart reports whether the blocks may change while the volume runs. They may if their
// length stays the same, as in a fork that is hydrated. They must if they are shorter than
// the snapshot that will lie on them, because the kernel refuses such a snapshot. That
// happens when an inactive volume is expanded and then cut while a snapshot of the volume
// is read.
func (p *planner) apart(w *wanted, d *kernelDevice) bool {
	return w.layer == nil && (d.table.Length() == w.table.length() || d.table.Length() < w.of.Live().Length)
}

// window adds the steps for a volume with a live layer that run while the volume is
// suspended: its own table, and the pending devices below it.
func (p *planner) window(w *wanted, d *kernelDevice) {
	live := w.of.Live()
	snap, real := p.wantedAt(p.snapDevice(live.LV)), p.wantedAt(p.realDevice(w.of.LV))
	pending := d == nil || !p.right(w, d)
	switch {
	case d == nil:
		p.add(stepCreate, w)
		p.load(w, false)
	case pending:
		p.load(w, d.Loaded)
	}
	idle, longer := p.pending[snap.uuid], p.pending[real.uuid]
	if !pending && !idle && !longer {
		switch {
		case d.Suspended && !p.held[w.uuid]:
			p.letGoTop(w, d)
		case d.Loaded && !d.Suspended:
			p.add(stepClear, w)
		}
		return
	}
	if d != nil && d.Live && !d.Suspended {
		p.add(stepSuspend, w)
	}
	if idle {
		if former := w.of.Before(live); former != nil && former.Inexact() && p.liesOn(former, real.device) {
			p.steps = append(p.steps, step{do: stepUsed, device: p.snapDevice(former.LV), of: w.of, layer: former})
		}
		delete(p.pending, snap.uuid)
		p.add(stepResume, snap)
	}
	if longer {
		delete(p.pending, real.uuid)
		p.resumeBelow(real)
		p.add(stepResume, real)
	}
	p.add(stepResume, w)
}

// letGoTop resumes a volume's top device with its active table.
func (p *planner) letGoTop(w *wanted, d *kernelDevice) {
	if d.Loaded {
		p.add(stepClear, w)
	}
	p.add(stepResume, w)
}

// wantedAt returns the wanted device with the UUID of d.
func (w *wantedSet) wantedAt(d device) *wanted {
	i := slices.IndexFunc(w.devices, func(x wanted) bool { return x.uuid == d.uuid })
	if i < 0 {
		return &wanted{device: d}
	}
	return &w.devices[i]
}

// liesOn reports whether origin is the origin of layer l's snapshot in the kernel.
func (p *planner) liesOn(l *catalog.Layer, origin device) bool {
	d, number := p.k[p.snapDevice(l.LV).uuid], p.k[origin.uuid]
	if d == nil || number == nil || len(d.table) != 1 {
		return false
	}
	s, is := d.table[0].Target.(dm.Snapshot)
	return is && s.Origin == number.Device
}
