package pool

import (
	"maps"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// bottomUp returns the kernel's devices, the lowest first.
func (k kernel) bottomUp() []*kernelDevice {
	var out []*kernelDevice
	byNumber, seen := k.byNumber(), map[string]bool{}
	var visit func(uuid string)
	visit = func(uuid string) {
		if uuid == "" || seen[uuid] {
			return
		}
		seen[uuid] = true
		for _, n := range k[uuid].uses() {
			visit(byNumber[n])
		}
		out = append(out, k[uuid])
	}
	for _, uuid := range k.sorted() {
		visit(uuid)
	}
	return out
}

// sorted returns the UUIDs in the order of the devices' names, so that equal states
// result in equal plans.
func (k kernel) sorted() []string {
	return slices.SortedFunc(maps.Keys(k), func(a, b string) int { return strings.Compare(k[a].Name, k[b].Name) })
}

// names returns the steps that rename devices to the names of their logical volumes. left
// has the names that are still taken by other devices of k, by the UUIDs of the devices
// that should have these names.
func (w *wantedSet) names(k kernel) (steps []step, left map[string]string) {
	p, all := &planner{wantedSet: w, k: maps.Clone(k)}, map[string]bool{}
	for uuid := range k {
		all[uuid] = true
	}
	left = p.misnamed(all)
	p.rename(left)
	return p.steps, left
}

// misnamed returns the right names of devices that have a wrong name, by their UUIDs. Trash
// keeps its name unless the trash stays, or another device should have the name.
func (p *planner) misnamed(staying map[string]bool) map[string]string {
	should, to := map[string]bool{}, map[string]string{}
	for i := range p.devices {
		should[p.devices[i].name] = true
	}
	for uuid, d := range p.k {
		id, layer, _ := catalog.SplitUUID(p.VG.ID, uuid)
		lv := p.VG.LVByID(lvm2.ID(id))
		if lv == nil || p.kept[uuid] != nil {
			continue
		}
		if name := lvm2.DMName(p.VG.Name, lv.Name, layer); name != d.Name && (!p.IsTrash(lv) || staying[uuid] || should[d.Name]) {
			to[uuid] = name
		}
	}
	return to
}

// rename adds the steps that give devices the names in to: the names of their logical
// volumes, which a rollback may have changed. A device that has the name of another device
// is renamed first.
func (p *planner) rename(to map[string]string) {
	taken := map[string]bool{}
	for _, d := range p.k {
		taken[d.Name] = true
	}
	for progress := len(to) > 0; progress; {
		progress = false
		for _, uuid := range p.k.sorted() {
			d, name := p.k[uuid], to[uuid]
			id, _, _ := catalog.SplitUUID(p.VG.ID, uuid)
			if name == "" || taken[name] {
				continue
			}
			p.steps = append(p.steps, step{do: stepRename, device: device{name: d.Name, uuid: uuid, udev: udevReal}, to: name, of: p.OwnerOf(lvm2.ID(id))})
			delete(taken, d.Name)
			renamed := *d
			renamed.Name = name
			p.k[uuid], taken[name], progress = &renamed, true, true
			delete(to, uuid)
		}
	}
}

// shutWindows replaces mirrors that are no longer needed by a linear table to the volume's
// content: to the fork or, if the window is already hydrated, to the volume's own blocks. A
// mirror may hold back writes since a disk failed, and then no device above it can be
// suspended.
func (p *planner) shutWindows(o *catalog.Volume) {
	if p.untouchable(o) != nil {
		return
	}
	for _, layer := range []string{layerWindow0, layerWindow1} {
		d := p.k[p.device(o.LV, layer, udevReal).uuid]
		if d == nil || !d.Live || len(d.table) != 1 || p.copied[o.LV.ID] == layer || p.wantedAt(device{uuid: d.uuid}).of != nil {
			continue
		}
		m, is := d.table[0].Target.(dm.Mirror)
		own, err := p.linearTable(o.LV)
		if !is || len(m.Legs) != 2 || err != nil {
			continue
		}
		at, fork := catalog.Span{Start: m.Legs[0].Offset, Length: d.table.Length()}, p.forkDevice(o.LV)
		w := &wanted{device: p.device(o.LV, layer, udevReal), of: o, table: disks(cutTable(own, at.Start, at.End()))}
		if o.Forked() && !o.Hydrated.Has(at) {
			if p.k[fork.uuid] == nil {
				continue
			}
			w.table = linearOn(at.Length, fork.uuid, at.Start)
		}
		p.load(w, d.Loaded && !p.ran[w.uuid])
		if !d.Suspended || p.ran[w.uuid] {
			p.steps = append(p.steps, step{do: stepSuspend, device: w.device, of: o, noFlush: true})
		}
		p.add(stepResume, w)
	}
}

// remove adds the steps that remove the unwanted devices that nobody has open, the highest
// device first, and records the volumes that have other unwanted devices. Trash that is
// still open is renamed if another device should have its name.
func (p *planner) remove() {
	should, users, byNumber := map[string]bool{}, map[string]int{}, p.k.byNumber()
	for i := range p.devices {
		w := &p.devices[i]
		should[w.uuid] = true
		for _, below := range w.table.below() {
			users[below]++
		}
		if d := p.k[w.uuid]; d != nil && p.held[w.uuid] { // its table stays active until it is resumed
			for _, n := range devicesIn(d.table) {
				users[byNumber[n]]++
			}
		}
	}
	below := func(d *kernelDevice, count int) {
		for _, n := range d.uses() {
			users[byNumber[n]] += count
		}
		for _, uuid := range p.collecting(d) {
			users[uuid] += count
		}
	}
	left := map[string]bool{}
	for uuid, d := range p.k {
		if !should[uuid] {
			below(d, 1)
			left[uuid] = p.kept[uuid] == nil
		}
	}
	sorted := p.k.sorted()
	for progress := true; progress; {
		progress = false
		for _, uuid := range sorted {
			if d := p.k[uuid]; left[uuid] && users[uuid] == 0 && p.opened[uuid] <= 0 {
				p.steps = append(p.steps, p.removal(d))
				below(d, -1)
				delete(left, uuid)
				delete(p.k, uuid)
				progress = true
			}
		}
	}
	for uuid, unwanted := range left {
		id, _, _ := catalog.SplitUUID(p.VG.ID, uuid)
		if o := p.OwnerOf(lvm2.ID(id)); unwanted && o != nil && p.opened[uuid] > 0 {
			p.open[o.LV.ID] = p.k[uuid].Name
		}
	}
	p.rename(p.misnamed(left))
}

// collecting returns the snapshots into which the kernel copies originals that are
// overwritten through the origin device d. They are removed after d, because the removal
// of d fails if d is open.
func (p *planner) collecting(d *kernelDevice) (uuids []string) {
	if len(d.table) != 1 {
		return nil
	}
	origin, is := d.table[0].Target.(dm.SnapshotOrigin)
	if !is {
		return nil
	}
	for uuid, x := range p.k {
		if len(x.table) == 1 {
			if s, is := x.table[0].Target.(dm.Snapshot); is && s.Origin == origin.Origin {
				uuids = append(uuids, uuid)
			}
		}
	}
	return uuids
}

// removal returns the step that removes d.
func (p *planner) removal(d *kernelDevice) step {
	id, layer, _ := catalog.SplitUUID(p.VG.ID, d.uuid)
	s := step{do: stepRemove, device: device{name: d.Name, uuid: d.uuid, udev: udevReal}, of: p.OwnerOf(lvm2.ID(id))}
	switch l := p.Layers.Get(lvm2.ID(id)); {
	case s.of == nil:
	case layer == layerCOW:
		s.udev = udevCOW
	case layer == "" && l != nil:
		s.layer, s.udev = l, udevSnapshot
	case layer == "":
		s.udev = udevVisible
	}
	return s
}
