package pool

import (
	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// checkDevices compares the kernel's devices with the metadata.
func (r *report) checkDevices(l *look) {
	for _, d := range l.devices {
		id, _, _ := catalog.SplitUUID(l.view.VG.ID, d.uuid)
		if l.view.VG.LVByID(lvm2.ID(id)) == nil {
			r.Add("DeviceOrphaned", d.Name, "if nobody uses it, dmsetup remove "+d.Name, "its logical volume is gone (open %d times)", d.OpenCount)
		}
		if d.Suspended {
			r.Add("DeviceSuspended", d.Name, "dmsetup resume "+d.Name+", or restart the driver", "it is suspended, so reads and writes wait")
		}
		if d.Loaded {
			r.Add("TablePending", d.Name, catalog.RestartDriver, "a table is loaded, but is not in use")
		}
	}
	families := l.view.split(l.devices)
	for root, members := range l.view.Members() {
		k := families[root]
		u := l.view.inUse(members, k, true)
		c := familyCheck{l, r, l.view.want(members, u, l.view.seenRunning(members, k), k)}
		for _, o := range members {
			if o.Theirs() == "" { // otherwise the tables are LVM2's
				c.names(o)
				c.losses(o)
			}
		}
		c.compare()
		c.leftovers(members)
	}
}

// familyCheck compares a family's devices with those that it should have.
type familyCheck struct {
	*look
	*report
	want *wantedSet
}

// names checks that the devices of a volume have the names of their logical
// volumes.
func (c familyCheck) names(o *catalog.Volume) {
	check := func(lv *lvm2.LV, layers ...string) {
		for _, layer := range layers {
			want, d := lvm2.DMName(c.view.VG.Name, lv.Name, layer), c.look.at(lv, layer)
			if d != nil && d.Name != want {
				c.Add("DeviceName", d.Name, "dmsetup rename "+d.Name+" "+want, "its name must be %s", want)
			}
			if uuid, taken := c.look.names[want]; taken && d == nil {
				c.Add("DeviceName", want, "if it is not needed, dmsetup remove "+want, "the device with this name is not LVM2's %s: its UUID is %q", c.report.At(lv), uuid)
			}
		}
	}
	for _, lv := range o.Parts() {
		check(lv, allLayers...)
	}
}

// compare looks for missing devices, and for devices with a wrong table.
func (c familyCheck) compare() {
	for _, w := range c.want.devices {
		d := c.devices[w.uuid]
		if d == nil {
			c.Add("DeviceMissing", w.name, catalog.RestartDriver, "volume %s or one of its snapshots is active and needs it", c.report.At(w.of.LV))
			continue
		}
		if table, complete := w.table.bind(c.devices.number); complete {
			c.table(w, d, table)
		}
		if w.uuid == c.view.topDevice(w.of.LV).uuid {
			c.node(d)
		}
	}
}

// table checks a device's table.
func (c familyCheck) table(w wanted, d *kernelDevice, want dm.Table) {
	switch have := d.goesOn(); {
	case !have.Equal(want):
		c.Add("WrongTable", d.Name, catalog.RestartDriver, "its table is\n%s\nbut must be\n%s", shorten(have), shorten(want))
	case d.ReadOnly != w.readOnly && !w.asIs:
		c.Add("WrongTable", d.Name, catalog.RestartDriver, "it is %s, but must be %s", access(d.ReadOnly), access(w.readOnly))
	}
}

// losses looks for layers that the kernel dropped, including those that nobody
// reads.
func (c familyCheck) losses(o *catalog.Volume) {
	for _, l := range o.Layers {
		if d := c.look.at(l.LV, ""); d != nil && d.status != nil && d.status.Invalid && !l.Lost {
			c.Add("LossNotRecorded", c.report.At(l.LV), "the running driver records it; then delete this and the older snapshots of the volume",
				"the kernel dropped its store, so the snapshot and the older ones are lost, but the metadata does not say so")
		}
	}
}

// leftovers looks for devices that should be gone, unless they are open.
func (c familyCheck) leftovers(members []*catalog.Volume) {
	should := map[string]bool{}
	for _, w := range c.want.devices {
		should[w.uuid] = true
	}
	for _, o := range members {
		for _, lv := range o.Parts() {
			for _, layer := range allLayers {
				d := c.look.at(lv, layer)
				if o.Forked() && (layer == layerWindow0 || layer == layerWindow1) {
					continue // the next or the previous window
				}
				if d != nil && d.OpenCount == 0 && !should[d.uuid] && c.want.kept[d.uuid] == nil {
					c.Add("DeviceLeftover", d.Name, catalog.RestartDriver, "nobody uses it")
				}
			}
		}
	}
}

// shorten returns a table in the format of dmsetup, cut after its first lines if it
// is long.
func shorten(t dm.Table) string {
	const lines = 8
	if len(t) == 0 {
		return "(none)"
	}
	if len(t) > lines {
		return t[:lines].String() + "\n…"
	}
	return t.String()
}

func access(readOnly bool) string {
	if readOnly {
		return "read-only"
	}
	return "writable"
}

// node checks the node of a volume's device, which pods use.
func (c familyCheck) node(d *kernelDevice) {
	if !d.Live {
		return
	}
	path := c.pool.dm.Node(d.Name)
	if have, err := dm.DeviceOf(path); err != nil || have != d.Device {
		c.Add("NodeWrong", d.Name, "dmsetup mknodes "+d.Name, "%s is not the node of device %v", path, d.Device)
	}
}
