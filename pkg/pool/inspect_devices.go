package pool

import (
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// checkDevices compares the kernel's devices with the metadata.
func (r *report) checkDevices(l *look) {
	for _, d := range l.devices {
		id, _, _ := splitUUID(l.view.vg.ID, d.uuid)
		if l.view.vg.LVByID(lvm2.ID(id)) == nil {
			r.add("DeviceOrphaned", d.Name, "if nobody uses it: dmsetup remove "+d.Name, "its logical volume is gone (open %d times)", d.OpenCount)
		}
		if d.Suspended {
			r.add("DeviceSuspended", d.Name, "dmsetup resume "+d.Name+", or restart the driver", "it is suspended: who reads or writes it waits")
		}
		if d.Loaded {
			r.add("TablePending", d.Name, restartDriver, "a table is loaded and was not taken in use")
		}
	}
	for _, o := range l.view.volumes {
		if o.theirs() != "" {
			continue // the tables are LVM2's
		}
		c := deviceCheck{look: l, report: r, o: o}
		c.names(o.lv, "", layerReal)
		for _, x := range o.layers {
			c.names(x.lv, "", layerCOW)
		}
		if o.reading() {
			c.reader()
			continue
		}
		if o.fork != nil {
			c.names(o.lv, layerFork, layerWindow0, layerWindow1)
			c.names(o.fork.lv, layerCOW)
		}
		table := c.blocks()
		if table == nil {
			continue
		}
		if o.live() == nil {
			c.plain(table)
		} else {
			c.history(table)
		}
	}
}

// deviceCheck compares the devices of one volume.
type deviceCheck struct {
	*look
	*report
	o *volume
}

func (c deviceCheck) dmName(lv *lvm2.LV, layer string) string {
	return lvm2.DMName(c.view.vg.Name, lv.Name, layer)
}

// names checks that the devices have the names of their logical volumes.
func (c deviceCheck) names(lv *lvm2.LV, layers ...string) {
	for _, layer := range layers {
		want, d := c.dmName(lv, layer), c.look.at(lv, layer)
		if d != nil && d.Name != want {
			c.add("DeviceName", d.Name, "dmsetup rename "+d.Name+" "+want, "its name must be %s", want)
		}
		if uuid, taken := c.look.names[want]; taken && d == nil {
			c.add("DeviceName", want, "if it is not needed: dmsetup remove "+want, "the device with this name is not LVM2's %s: its UUID is %q", c.report.at(lv), uuid)
		}
	}
}

// plain checks a volume without a live layer.
func (c deviceCheck) plain(table dm.Table) {
	c.top(table)
	c.node(c.look.at(c.o.lv, ""))
	for _, x := range c.o.layers {
		c.leftover(c.look.at(x.lv, ""))
	}
	if c.o.copying == nil { // else who goes on with the copy uses it
		c.leftover(c.look.at(c.o.lv, layerReal))
	}
}

// history checks a volume with layers: the four devices of the newest one, and
// the stack of older ones as far as it is up.
func (c deviceCheck) history(table dm.Table) {
	live := c.o.live()
	top, real, snap := c.look.at(c.o.lv, ""), c.look.at(c.o.lv, layerReal), c.look.at(live.lv, "")
	if top != nil || snap != nil {
		c.needed(c.o.lv, layerReal)
		c.needed(live.lv, layerCOW)
		c.needed(live.lv, "")
	}
	c.table(c.o.lv, layerReal, table, readOnlyLV(c.o.lv))
	c.store(live, false)
	if real != nil {
		c.top(whole(table.Length(), dm.SnapshotOrigin{Origin: real.Device}))
		c.snapshot(live, real, false)
	}
	c.node(top)
	for i, x := range c.o.layers[:len(c.o.layers)-1] {
		d, next := c.look.at(x.lv, ""), c.o.nextOf(i)
		if d == nil {
			c.leftover(c.look.at(x.lv, layerCOW))
			continue
		}
		c.leftover(d) // unless a reader has it open, or it is below another one
		if next == nil {
			continue // and that is said already
		}
		above := c.look.at(next.lv, "")
		if above == nil {
			c.add("DeviceMissing", c.dmName(next.lv, ""), restartDriver, "the older snapshot's device %s reads through it, and it is not there", d.Name)
			continue
		}
		c.needed(x.lv, layerCOW)
		c.store(x, true)
		c.snapshot(x, above, true)
	}
	if top == nil {
		c.leftover(snap)
	}
	if snap == nil && top == nil {
		c.leftover(real)
		c.leftover(c.look.at(live.lv, layerCOW))
	}
}

// snapshot checks the device of a layer that reads through another device.
func (c deviceCheck) snapshot(x *layer, above *kernelDevice, readOnly bool) {
	d, store := c.look.at(x.lv, ""), c.look.at(x.lv, layerCOW)
	if d == nil {
		return
	}
	if store != nil {
		want := dm.Snapshot{Origin: above.Device, COW: store.Device, Persistence: dm.Persistent, Chunk: x.chunk}
		if x.superset && !d.ReadOnly && readOnly { // layers are being folded into it
			want.Persistence, readOnly = dm.PersistentOverflow, false
		}
		c.table(x.lv, "", whole(x.length, want), readOnly)
	}
	if s := d.status; s != nil && s.Invalid && !x.lost {
		c.add("LossNotRecorded", c.report.at(x.lv), "the running driver records it; then delete this and the older snapshots of the volume",
			"the kernel dropped its store: the snapshot and the older ones are lost, and the metadata does not say so")
	}
}

// store checks the table of a layer's store. A frozen one that was live before
// stays writable as long as it is open.
func (c deviceCheck) store(x *layer, frozen bool) {
	d := c.look.at(x.lv, layerCOW)
	table, err := c.pool.linearTable(c.view, x.lv)
	if err != nil || d == nil {
		return
	}
	c.table(x.lv, layerCOW, table, frozen && d.ReadOnly)
}

// top checks the table of the volume's device. It is read-only while it is published
// to readers only, whatever its table is.
func (c deviceCheck) top(want dm.Table) {
	d := c.look.at(c.o.lv, "")
	c.table(c.o.lv, "", want, readOnlyLV(c.o.lv) || d != nil && d.ReadOnly)
}

// table checks a device's live table, if there is the device.
func (c deviceCheck) table(lv *lvm2.LV, layer string, want dm.Table, readOnly bool) {
	d := c.look.at(lv, layer)
	switch {
	case d == nil:
	case !d.table.Equal(want):
		c.add("WrongTable", d.Name, restartDriver, "its table is\n%s\nand must be\n%s", shorten(d.table), shorten(want))
	case d.ReadOnly != readOnly:
		c.add("WrongTable", d.Name, restartDriver, "it is %s and must be %s", access(d.ReadOnly), access(readOnly))
	}
}

// shorten returns a table as dmsetup prints it, of a long one the beginning.
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

func (c deviceCheck) needed(lv *lvm2.LV, layer string) {
	if c.look.at(lv, layer) == nil {
		c.add("DeviceMissing", c.dmName(lv, layer), restartDriver, "volume %s or one of its snapshots is active and needs it", c.report.at(c.o.lv))
	}
}

// leftover reports a device that should have gone, unless it is open.
func (c deviceCheck) leftover(d *kernelDevice) {
	if d != nil && d.OpenCount == 0 {
		c.add("DeviceLeftover", d.Name, restartDriver, "nobody uses it")
	}
}

// node checks the node of a volume's device, which pods get.
func (c deviceCheck) node(d *kernelDevice) {
	if d == nil || !d.Live {
		return
	}
	path := c.pool.dm.Node(d.Name)
	if have, err := dm.DeviceOf(path); err != nil || have != d.Device {
		c.add("NodeWrong", d.Name, "dmsetup mknodes "+d.Name, "%s does not lead to device %v", path, d.Device)
	}
}
