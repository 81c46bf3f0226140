package pool

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// rig imitates a kernel: it carries out plans on devices in memory. It refuses steps
// that the real kernel refuses, or would never return from.
type rig struct {
	*paperGroup
	kernel
	minor    uint32
	readOnly map[string]bool // by UUID: the loaded table is read-only
}

func newRig(g *paperGroup) *rig {
	return &rig{paperGroup: g, kernel: kernel{}, readOnly: map[string]bool{}}
}

// copy returns a rig with the same devices, whose changes do not affect r.
func (r *rig) copy() *rig {
	c := &rig{paperGroup: r.paperGroup, kernel: kernel{}, minor: r.minor, readOnly: maps.Clone(r.readOnly)}
	for uuid, d := range r.kernel {
		x := *d
		c.kernel[uuid] = &x
	}
	return c
}

// opens sets the devices' open counts: the tables that use a device, and one more for
// each device in open.
func (r *rig) opens(open []string) {
	byNumber := map[dm.Device]*kernelDevice{}
	for _, d := range r.kernel {
		byNumber[d.Device] = d
		d.OpenCount = 0
		if slices.Contains(open, strings.TrimPrefix(d.Name, "vg-")) {
			d.OpenCount = 1
		}
	}
	for _, d := range r.kernel {
		for _, n := range d.uses() {
			if below := byNumber[n]; below != nil {
				below.OpenCount++
			}
		}
	}
}

// below returns the devices that a table lies on, directly or indirectly.
func (r *rig) below(t dm.Table) []*kernelDevice {
	var out []*kernelDevice
	for _, n := range devicesIn(t) {
		for _, d := range r.kernel {
			if d.Device == n {
				out = append(append(out, d), r.below(d.table)...)
			}
		}
	}
	return out
}

// apply carries out a step.
func (r *rig) apply(s step) error {
	d := r.kernel[s.uuid]
	if s.do == stepCreate {
		if d != nil {
			return fmt.Errorf("%s: it already exists", s.name)
		}
		for _, x := range r.kernel {
			if x.Name == s.name {
				return fmt.Errorf("%s: another device has the name", s.name)
			}
		}
		r.minor++
		r.kernel[s.uuid] = &kernelDevice{Info: dm.Info{Name: s.name, UUID: s.uuid, Device: dm.Device{Major: 254, Minor: r.minor}}, uuid: s.uuid}
		return nil
	}
	if d == nil || d.Name != s.name {
		return fmt.Errorf("%s: there is no such device", s.name)
	}
	switch s.do {
	case stepClear:
		d.loaded, d.Loaded = nil, false
	case stepLoad:
		return r.load(d, s)
	case stepSuspend:
		for _, x := range r.below(d.table) {
			if x.Suspended {
				return fmt.Errorf("%s: I/O waits for %s", s.name, x.Name)
			}
		}
		d.Suspended = true
	case stepResume:
		return r.resume(d)
	case stepRename:
		d.Name = s.to
	case stepRemove:
		r.opens(nil)
		if d.OpenCount > 0 {
			return fmt.Errorf("%s: it is open", s.name)
		}
		delete(r.kernel, s.uuid)
	}
	return nil
}

func (r *rig) load(d *kernelDevice, s step) error {
	table, complete := s.table.bind(r.number)
	if !complete {
		return fmt.Errorf("%s: a device of its table does not exist: %v", s.name, table)
	}
	for _, x := range r.below(table) {
		if x.Suspended && x != d {
			return fmt.Errorf("%s: reading its store waits for %s", s.name, x.Name)
		}
	}
	if t, is := table[0].Target.(dm.Snapshot); is {
		for _, x := range r.below(table) {
			if !x.Live {
				return fmt.Errorf("%s: %s has no table", s.name, x.Name)
			}
		}
		for _, x := range r.kernel {
			for _, other := range []dm.Table{x.table, x.loaded} {
				if len(other) == 1 && x != d {
					if o, is := other[0].Target.(dm.Snapshot); is && o.COW == t.COW {
						return fmt.Errorf("%s: %s has the same store", s.name, x.Name)
					}
				}
			}
		}
	}
	d.loaded, d.Loaded, r.readOnly[d.uuid] = table, true, s.readOnly
	return nil
}

func (r *rig) resume(d *kernelDevice) error {
	if !d.Live && !d.Loaded {
		return fmt.Errorf("%s: it has no table", d.Name)
	}
	if d.Loaded {
		if m, is := d.loaded[0].Target.(dm.Mirror); is {
			for _, x := range r.kernel {
				if x.Live && !x.Suspended && slices.Contains(devicesIn(x.table), m.Legs[0].Device) && x != d {
					if t, plain := x.table[0].Target.(dm.Linear); plain && t.Device != m.Legs[0].Device {
						return fmt.Errorf("%s: writes to %s bypass the mirror", d.Name, x.Name)
					}
				}
			}
		}
		d.table, d.loaded, d.Loaded, d.Live, d.ReadOnly = d.loaded, nil, false, true, r.readOnly[d.uuid]
	}
	d.Suspended = false
	return nil
}

// steps returns a plan, one line for each step.
func (r *rig) steps(plan []step) []string {
	var out []string
	for _, s := range plan {
		line := fmt.Sprintf("%s %s", s.do, strings.TrimPrefix(s.name, "vg-"))
		if s.do == stepLoad {
			none := func(string) (dm.Device, bool) { return dm.Device{}, false }
			line += ": " + strings.Join(s.table.text(none, r.name), "; ")
		}
		if s.noFlush {
			line += " without a flush"
		}
		if s.to != "" {
			line += " to " + strings.TrimPrefix(s.to, "vg-")
		}
		out = append(out, line)
	}
	return out
}

// name returns the name of the device with a UUID, without the group's name.
func (r *rig) name(uuid string) string {
	id, layer, _ := catalog.SplitUUID(r.VG.ID, uuid)
	return strings.TrimPrefix(lvm2.DMName("vg", r.VG.LVByID(lvm2.ID(id)).Name, layer), "vg-")
}

// situation says which volumes and snapshots are in use, and what runs.
type situation struct {
	active, read []string // volumes and snapshots
	running      running
}

func (r *rig) plan(s situation) []step {
	open := slices.Clone(s.active)
	for _, name := range s.read {
		open = append(open, strings.TrimPrefix(r.view().snapDevice(r.Snapshots.Get(name).LV).name, "vg-"))
	}
	r.opens(open)
	family := r.paperGroup.family("vol")
	return r.view().want(family, r.inUseBy(s.active, s.read...), s.running, r.view().split(r.kernel)["vol"]).plan(family, r.view().split(r.kernel)["vol"])
}

// converge carries out the plan and checks that nothing is left to plan, also after an
// interruption before each step. It returns the steps.
func (r *rig) converge(what string, s situation) []string {
	r.Helper()
	plan := r.plan(s)
	for n := range plan {
		killed := r.copy()
		for _, x := range plan[:n] {
			if err := killed.apply(x); err != nil {
				r.Fatalf("%s: %v in\n%s", what, err, strings.Join(r.steps(plan), "\n"))
			}
		}
		killed.finish(fmt.Sprintf("%s, killed before %s", what, r.steps(plan)[n]), s)
	}
	r.finish(what, s)
	return r.steps(plan)
}

func (r *rig) finish(what string, s situation) {
	r.Helper()
	plan := r.plan(s)
	for _, x := range plan {
		if err := r.apply(x); err != nil {
			r.Fatalf("%s: %v in\n%s\nfrom\n%s", what, err, strings.Join(r.steps(plan), "\n"), r.dump())
		}
	}
	if again := r.steps(r.plan(s)); len(again) > 0 {
		r.Fatalf("%s: the plan is not complete: after\n%s\ncomes\n%s", what, strings.Join(r.steps(plan), "\n"), strings.Join(again, "\n"))
	}
	for _, d := range r.kernel {
		if d.Suspended && !s.running.held[d.uuid] || d.Loaded && !d.Suspended {
			r.Errorf("%s: %s is suspended: %v, loaded: %v", what, d.Name, d.Suspended, d.Loaded)
		}
	}
}

func (r *rig) dump() string {
	var out []string
	for _, uuid := range slices.Sorted(maps.Keys(r.kernel)) {
		d := r.kernel[uuid]
		out = append(out, fmt.Sprintf("%s %v suspended %v: %v, loaded %v", d.Name, d.Device, d.Suspended, d.table, d.loaded))
	}
	return strings.Join(out, "\n")
}
