package pool

import (
	"maps"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// A plan is what must be done to a family's devices, in this order, so that they
// become those that it should have. It is computed from what is wanted and from the
// kernel's devices, and nothing else. An interruption at any step leaves devices from
// which the next plan leads on.
//
// The order rules of the kernel's snapshots, each of which costs data when broken:
//
//   - What was left suspended goes on first, the lowest device first: what lies above
//     waits for I/O inside it, and so would we.
//   - A device is made, and given its table, after those that it lies on.
//   - While a volume is held still (window): the former newest layer's used count is
//     read, then the new snapshot is resumed, then the blocks, and the volume itself
//     last: its resume computes how writes are split.
//   - An older layer is loaded above the new one only after the window.
//   - A mirror is resumed only while its user is suspended.
//   - What is not wanted is removed last, the highest device first.

// stepKind is what a step of a plan does.
type stepKind string

// The kinds of steps.
const (
	stepClear   stepKind = "clear"   // drop the table that is loaded and not in use
	stepCreate  stepKind = "create"  // make a device, without a table
	stepLoad    stepKind = "load"    // load a table
	stepSuspend stepKind = "suspend" // hold the device still
	stepResume  stepKind = "resume"  // let it go on, with the table that is loaded
	stepUsed    stepKind = "used"    // read how much of its store a layer uses
	stepRevive  stepKind = "revive"  // take back that the kernel gave up a fork's store
	stepRename  stepKind = "rename"
	stepRemove  stepKind = "remove"
)

// step is one step of a plan.
type step struct {
	do stepKind
	device
	table    symbolic // to load
	readOnly bool     // to load
	noFlush  bool     // to suspend: I/O that a mirror holds back would never end
	to       string   // the new name
	of       *volume  // whose device it is; nil if that is not known
	layer    *layer   // whose snapshot it is
}

// planner makes a plan.
type planner struct {
	*wantedSet
	k       kernel
	opened  map[string]int // by others than devices of the group
	steps   []step
	pending map[string]bool // snapshots and blocks that wait for their volume's window
	ran     map[string]bool // devices that a step lets go on
	missing map[string]bool // devices that cannot be made: what they lie on is not there
}

// plan returns the steps that lead from the kernel's devices, those of the family
// (split), to those that are wanted.
func (w *wantedSet) plan(members []*volume, k kernel) []step {
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
		// A frozen store that is writable stays so. A volume's own device is never made
		// read-only by its table: nothing ends that when a writer is published.
		if d := p.k[w.uuid]; w.asIs && w.readOnly && d != nil && d.Live {
			s.readOnly = d.ReadOnly
		}
	case stepResume:
		p.ran[w.uuid] = true
	}
	p.steps = append(p.steps, s)
}

// right says whether the kernel has a device as it is wanted.
func (p *planner) right(w *wanted, d *kernelDevice) bool {
	table, complete := w.table.bind(p.k.number)
	have := d.table
	if p.held[w.uuid] {
		have = d.goesOn()
	}
	return d.Live && complete && have.Equal(table) && (d.ReadOnly == w.readOnly || w.asIs) || d.Live && w.once
}

// leftSuspended returns the steps that let the devices go on that somebody has left
// suspended, the lowest first, each with the table that it has: but for volumes' own,
// whose change may have been under way. It goes by what is held alone.
func (w *wantedSet) leftSuspended(k kernel) (steps []step) {
	for _, d := range k.bottomUp() {
		id, layer, _ := splitUUID(w.vg.ID, d.uuid)
		of := w.ownerOf(lvm2.ID(id))
		if top := of != nil && layer == "" && of.lv.ID == lvm2.ID(id); !d.Suspended || !d.Live || top || w.held[d.uuid] {
			continue
		}
		s := step{device: device{name: d.Name, uuid: d.uuid}, of: of}
		if of != nil && w.stuck[of.lv.ID] != nil || w.strays[d.uuid] != nil {
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

// letTopsGo lets volumes' own devices go on that stay as they are.
func (p *planner) letTopsGo(members []*volume) {
	for _, o := range members {
		d := p.topDevice(o.lv)
		if x := p.k[d.uuid]; x != nil && x.Suspended && x.Live && !p.held[d.uuid] && p.wantedAt(d).of == nil {
			p.letGoTop(&wanted{device: device{name: x.Name, uuid: x.uuid, udev: d.udev}, of: o}, x)
		}
	}
}

// bring makes a device what is wanted.
func (p *planner) bring(w *wanted) {
	d := p.k[w.uuid]
	if p.isTop(w) && w.of.live() != nil && !w.of.reading() {
		p.window(w, d)
		return
	}
	if d != nil && w.mirrors() && !p.right(w, d) && p.idle(d) { // left of a former window
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
		case p.held[w.uuid] && p.isTop(w): // who lets it go on finds the table loaded
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

// load loads a device's table; a store is longer while its snapshot is constructed, if
// need be.
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

// start resumes a new device, unless it must wait: a snapshot for its volume's window, a
// mirror for its user, which is suspended then, or new.
func (p *planner) start(w *wanted) {
	mirror := w.mirrors() && p.wantedAt(p.contentDevice(w.of)).of != nil
	if mirror || w.layer != nil && p.inWindow(w) {
		p.pending[w.uuid] = true
		return
	}
	p.resumeBelow(w)
	p.add(stepResume, w)
}

// mirrors says whether the device copies as soon as it is resumed.
func (w *wanted) mirrors() bool {
	if len(w.table) == 0 {
		return false
	}
	_, is := w.table[0].target.(dm.Mirror)
	return is
}

// mirrorWaits says whether a mirror waits until what lies on it is suspended.
func (p *planner) mirrorWaits(o *volume) bool {
	return slices.ContainsFunc(p.devices, func(x wanted) bool { return x.of == o && x.mirrors() && p.pending[x.uuid] })
}

// idle says whether nothing lies on a device.
func (p *planner) idle(d *kernelDevice) bool {
	for _, x := range p.k {
		if slices.Contains(x.uses(), d.Device) {
			return false
		}
	}
	return p.opened[d.uuid] <= 0
}

// possible says whether all that a device lies on is there, or is made before it.
func (p *planner) possible(w *wanted) bool {
	if live := w.of.live(); live != nil && p.isTop(w) && !w.of.reading() { // what is overwritten is copied into it
		if snap := p.snapDevice(live.lv); p.k[snap.uuid] == nil && (p.missing[snap.uuid] || p.wantedAt(snap).of == nil) {
			return false
		}
	}
	return !slices.ContainsFunc(w.table.below(), func(uuid string) bool {
		return p.k[uuid] == nil && (p.missing[uuid] || p.wantedAt(device{uuid: uuid}).of == nil)
	})
}

// swap takes a table that is loaded in use, and the mirrors that wait for that.
func (p *planner) swap(w *wanted, d *kernelDevice) {
	if !d.Suspended || p.ran[w.uuid] {
		p.add(stepSuspend, w)
	}
	p.resumeBelow(w)
	p.add(stepResume, w)
}

// resumeBelow resumes mirrors below a device that is suspended.
func (p *planner) resumeBelow(w *wanted) {
	for i := range p.devices {
		x := &p.devices[i]
		if x.mirrors() && x.of == w.of && p.pending[x.uuid] {
			delete(p.pending, x.uuid)
			p.add(stepResume, x)
		}
	}
}

func (w *wantedSet) isTop(d *wanted) bool { return d.uuid == w.topDevice(d.of.lv).uuid }

// inWindow says whether a device may change only while its volume is held still: the
// live layer's snapshot, and the blocks, as long as somebody may write to the volume.
func (p *planner) inWindow(w *wanted) bool {
	top := p.k[p.topDevice(w.of.lv).uuid]
	if top == nil || !top.Live || w.of.reading() || w.of.live() == nil {
		return false
	}
	return w.layer != nil && w.layer == w.of.live() || w.uuid == p.realDevice(w.of.lv).uuid
}

// apart says whether blocks change while the volume runs: they are as long as before, as
// those of a fork that is hydrated. Or they are shorter than the snapshot that will lie on
// them, and the kernel takes no snapshot of blocks that are not there: a volume that was
// not active was expanded, and then cut, while a snapshot of it was read.
func (p *planner) apart(w *wanted, d *kernelDevice) bool {
	return w.layer == nil && (d.table.Length() == w.table.length() || d.table.Length() < w.of.live().length)
}

// window brings about what is to change while a volume with a live layer is held
// still: its own table, and what is pending below it.
func (p *planner) window(w *wanted, d *kernelDevice) {
	live := w.of.live()
	snap, real := p.wantedAt(p.snapDevice(live.lv)), p.wantedAt(p.realDevice(w.of.lv))
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
		if former := w.of.before(live); former != nil && former.inexact() && p.liesOn(former, real.device) {
			p.steps = append(p.steps, step{do: stepUsed, device: p.snapDevice(former.lv), of: w.of, layer: former})
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

// letGoTop lets a volume's own device go on with the table that it has.
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

// liesOn says whether the kernel's snapshot of a layer has the device as its origin.
func (p *planner) liesOn(l *layer, origin device) bool {
	d, number := p.k[p.snapDevice(l.lv).uuid], p.k[origin.uuid]
	if d == nil || number == nil || len(d.table) != 1 {
		return false
	}
	s, is := d.table[0].Target.(dm.Snapshot)
	return is && s.Origin == number.Device
}
