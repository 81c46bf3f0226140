package pool

import (
	"errors"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// kernelDevice is the state of a device at one moment.
type kernelDevice struct {
	dm.Info
	uuid   string
	table  dm.Table           // the active table
	loaded dm.Table           // the inactive table; nil if there is none
	status *dm.SnapshotStatus // of a snapshot, if it was asked for
}

// kernel is the state of a group's devices at one moment, by their UUIDs.
type kernel map[string]*kernelDevice

// lookAt asks the kernel for one device. It asks for the status only if status is set,
// because the status call may hang while a device below is suspended.
func lookAt(client *dm.Client, e dm.ListEntry, status bool) (*kernelDevice, error) {
	d := &kernelDevice{uuid: e.UUID}
	var err error
	if d.Info, d.table, err = client.Look(e.Name); err != nil {
		return nil, err
	}
	if d.Loaded {
		if d.loaded, err = client.LoadedTable(e.Name); err != nil {
			return nil, err
		}
	}
	if !status {
		return d, nil
	}
	all, err := client.Status(e.Name)
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if s, ok := s.Status.(dm.SnapshotStatus); ok {
			d.status = &s
		}
	}
	return d, nil
}

// lookAtAll asks for the devices in all that belong to the group. It skips a device that
// another process removes in the meantime, without LVM2's lock.
func lookAtAll(client *dm.Client, vg lvm2.ID, all []dm.ListEntry, status bool) (kernel, error) {
	k := kernel{}
	for _, e := range all {
		if _, _, ours := catalog.SplitUUID(vg, e.UUID); !ours {
			continue
		}
		d, err := lookAt(client, e, status)
		if errors.Is(err, dm.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		k[e.UUID] = d
	}
	return k, nil
}

// split groups devices by family, under the name of the family's root. The devices of a
// deleted logical volume belong to the family whose devices lie above or below them. They
// belong to no family if there is none, or if LVM2 moves the logical volume.
func (v *view) split(k kernel) map[string]kernel {
	root, trash := map[string]string{}, map[string]bool{} // by ids of logical volumes
	for _, lv := range v.Trash {
		trash[string(lv.ID)] = catalog.Linear(lv)
	}
	byNumber, id := k.byNumber(), func(uuid string) string { id, _, _ := catalog.SplitUUID(v.VG.ID, uuid); return id }
	type pair struct{ above, below string } // one of them is trash
	var pairs []pair
	for uuid, d := range k {
		above := id(uuid)
		if o := v.OwnerOf(lvm2.ID(above)); o != nil && root[above] == "" {
			root[above] = v.Root(o.LV.Name)
		}
		for _, n := range d.uses() {
			if lower := byNumber[n]; lower != "" && (trash[above] || trash[id(lower)]) {
				pairs = append(pairs, pair{above, id(lower)})
			}
		}
	}
	for more := true; more; {
		more = false
		for _, x := range pairs {
			switch above, below := root[x.above], root[x.below]; {
			case above == "" && below != "" && trash[x.above]:
				root[x.above], more = below, true
			case below == "" && above != "" && trash[x.below]:
				root[x.below], more = above, true
			}
		}
	}
	out := map[string]kernel{}
	for uuid, d := range k {
		if of := root[id(uuid)]; of != "" {
			if out[of] == nil {
				out[of] = kernel{}
			}
			out[of][uuid] = d
		}
	}
	return out
}

func (k kernel) byNumber() map[dm.Device]string {
	out := make(map[dm.Device]string, len(k))
	for uuid, d := range k {
		out[d.Device] = uuid
	}
	return out
}

// goesOn returns the table with which a device runs, or will run after its next resume.
func (d *kernelDevice) goesOn() dm.Table {
	if d.Suspended && d.Loaded {
		return d.loaded
	}
	return d.table
}

// uses returns the devices in both tables of a device, each once.
func (d *kernelDevice) uses() []dm.Device { return devicesIn(d.table, d.loaded) }

// devicesIn returns the devices in the tables, each once.
func devicesIn(tables ...dm.Table) []dm.Device {
	var out []dm.Device
	seen := map[dm.Device]bool{}
	for _, t := range tables {
		for _, s := range t {
			for _, a := range areas(s) {
				if !seen[a.Device] {
					seen[a.Device] = true
					out = append(out, a.Device)
				}
			}
		}
	}
	return out
}

// at returns the device of a logical volume's layer; nil if there is none.
func (k kernel) at(vg lvm2.ID, lv *lvm2.LV, layer string) *kernelDevice {
	return k[lvm2.DMUUID(vg, lv.ID, layer)]
}

// number returns the number of the device with the UUID, for symbolic tables.
func (k kernel) number(uuid string) (dm.Device, bool) {
	if d := k[uuid]; d != nil {
		return d.Device, true
	}
	return dm.Device{}, false
}

// opened returns the open count of each device, without the opens by devices of the group.
func (k kernel) opened() map[string]int {
	byNumber, out := k.byNumber(), make(map[string]int, len(k))
	for uuid, d := range k {
		out[uuid] = d.OpenCount
	}
	for _, d := range k {
		for _, below := range d.uses() {
			if uuid := byNumber[below]; uuid != "" {
				out[uuid]--
			}
		}
	}
	return out
}

// inUse finds the parts of a family in use from the kernel's devices: volumes with their own
// device, open devices, and the devices below these. If hydrating is set, a fork with
// devices counts as in use, because a driver may hydrate it.
func (v *view) inUse(members []*catalog.Volume, k kernel, hydrating bool) use {
	u := use{active: map[lvm2.ID]bool{}, content: map[lvm2.ID]bool{}, read: map[lvm2.ID]bool{}}
	busy := v.busy(members, k)
	for _, o := range members {
		fork := v.forkDevice(o.LV)
		u.active[o.LV.ID] = k[v.topDevice(o.LV).uuid] != nil
		u.content[o.LV.ID] = o.Forked() && k[fork.uuid] != nil && hydrating || busy[fork.uuid] || busy[v.realDevice(o.LV).uuid] || busy[v.device(o.LV, layerRecovered, udevReal).uuid]
		for _, l := range o.Layers {
			u.read[l.LV.ID] = busy[v.snapDevice(l.LV).uuid] || l == o.Live() && k[v.snapDevice(l.LV).uuid] != nil && busy[v.realDevice(o.LV).uuid]
		}
	}
	return u
}

// busy returns the devices that are open from outside of the family, the devices of volumes
// that the driver leaves as they are (Theirs), and all devices below these.
func (v *view) busy(members []*catalog.Volume, k kernel) map[string]bool {
	var kept []string
	for _, o := range members {
		if o.Theirs() == "" {
			continue
		}
		for _, lv := range o.Parts() {
			for _, layer := range allLayers {
				kept = append(kept, lvm2.DMUUID(v.VG.ID, lv.ID, layer))
			}
		}
	}
	return k.busy(kept...)
}

// busy returns the devices that are open from outside of k, the devices in kept, and all
// devices below these.
func (k kernel) busy(kept ...string) map[string]bool {
	byNumber, out := k.byNumber(), map[string]bool{}
	var mark func(uuid string)
	mark = func(uuid string) {
		if d := k[uuid]; d != nil && !out[uuid] {
			out[uuid] = true
			for _, n := range d.uses() {
				mark(byNumber[n])
			}
		}
	}
	for uuid, n := range k.opened() {
		if n > 0 {
			mark(uuid)
		}
	}
	for _, uuid := range kept {
		mark(uuid)
	}
	return out
}

// seenRunning derives the running work of a driver from a family's devices: the windows of
// its forks, and the heir of a fold.
func (v *view) seenRunning(members []*catalog.Volume, k kernel) running {
	r := running{windows: map[lvm2.ID]window{}, held: map[string]bool{}}
	for _, o := range members {
		for _, l := range o.Layers {
			if d := k[v.snapDevice(l.LV).uuid]; d != nil && l.Snap == nil && l.Superset && !d.ReadOnly {
				r.heir = l.LV.ID
			}
		}
		if !o.Forked() {
			continue
		}
		user := k[v.contentDevice(o).uuid]
		for _, layer := range []string{layerWindow0, layerWindow1} {
			d := k[v.device(o.LV, layer, udevReal).uuid]
			if d == nil || len(d.table) != 1 {
				continue
			}
			m, is := d.table[0].Target.(dm.Mirror)
			if is && len(m.Legs) == 2 && (user == nil || slices.Contains(devicesIn(user.goesOn()), d.Device)) {
				r.windows[o.LV.ID] = window{layer, catalog.Span{Start: m.Legs[0].Offset, Length: d.table.Length()}}
			}
		}
	}
	return r
}

// contentDevice returns the device with the volume's content: the device of its users, or
// the blocks below it if there is a live layer.
func (v *view) contentDevice(o *catalog.Volume) device {
	if o.Live() != nil {
		return v.realDevice(o.LV)
	}
	return v.topDevice(o.LV)
}
