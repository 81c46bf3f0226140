package pool

import (
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// checkFork looks at what a fork's tags say.
func (r *report) checkFork(v *view, o *volume) {
	if !o.forked() {
		return
	}
	at := r.at(o.lv)
	l := v.layers[o.copyOf]
	if l == nil {
		r.add("CopySourceMissing", at, "delete the volume and restore it again", "the layer %s that it reads through is gone", o.copyOf)
		return
	}
	if h := o.hydrated; h.to > l.length || len(h.missing(l.length)) == 0 {
		r.add("BadTags", at, restoreGroup, "tag %s: %v sectors, the snapshot that it reads through has %d", tag(tagHydrated), o.hydrated, l.length)
	}
	if o.fork == nil {
		r.add("ForkStoreMissing", at, "delete the volume and restore it again", "the store of what was written to it is gone")
		return
	}
	store := r.at(o.fork.lv)
	if !untouchable(o.fork.lv) {
		r.add("Unprotected", store, protect(store), "LVM2 may activate or change the store of a volume that is not hydrated")
	}
	if err := cow.CheckChunk(o.fork.chunk.Bytes()); err != nil {
		r.add("BadTags", store, restoreGroup, "tag %s: %v", tag(tagChunk), err)
	}
}

// blocks returns the table that the device with the volume's content must have.
// Of a fork it checks the other devices, too. nil if it cannot be known: a disk
// is missing, or a device of the fork, and that is said elsewhere.
func (c deviceCheck) blocks() dm.Table {
	own, err := c.pool.linearTable(c.view, c.o.lv)
	if err != nil {
		return nil
	}
	fork := c.look.at(c.o.lv, layerFork)
	l := c.view.layers[c.o.copyOf]
	if !c.o.forked() || l == nil || c.o.fork == nil {
		for _, layer := range []string{layerFork, layerWindow0, layerWindow1} {
			c.leftover(c.look.at(c.o.lv, layer))
		}
		return own
	}
	user := c.look.at(c.o.lv, "")
	if c.o.live() != nil {
		user = c.look.at(c.o.lv, layerReal)
	}
	if fork == nil {
		if user != nil {
			c.needed(c.o.lv, layerFork)
		}
		return nil
	}
	c.needed(c.o.fork.lv, layerCOW)
	above, store := c.look.at(l.lv, ""), c.look.at(c.o.fork.lv, layerCOW)
	if above != nil && store != nil {
		c.table(c.o.lv, layerFork, whole(l.length, dm.Snapshot{
			Origin: above.Device, COW: store.Device, Persistence: dm.PersistentOverflow, Chunk: c.o.fork.chunk,
		}), false)
	}
	tables := []dm.Table{composite(own, c.o.hydrated.missing(l.length), fork.Device, nil)}
	for _, layer := range []string{layerWindow0, layerWindow1} {
		if w := c.window(layer, own, fork, l.length); w != nil {
			tables = append(tables, composite(own, c.o.hydrated.missing(l.length), fork.Device, w))
		}
	}
	if user != nil {
		if i := slices.IndexFunc(tables, user.table.Equal); i >= 0 {
			return tables[i]
		}
	}
	return tables[0]
}

// window returns the window that a mirror of the fork is, if none or all of it
// is hydrated: before the copy, or just after it.
func (c deviceCheck) window(layer string, own dm.Table, fork *kernelDevice, length size.Sectors) *kernelWindow {
	d := c.look.at(c.o.lv, layer)
	if d == nil || len(d.table) != 1 {
		return nil
	}
	m, is := d.table[0].Target.(dm.Mirror)
	if !is || len(m.Legs) != 2 {
		return nil
	}
	w := &kernelWindow{d.Device, span{m.Legs[0].Offset, d.table[0].Length}}
	to := cutTable(own, w.start, w.end())
	if len(to) != 1 || dm.Area(to[0].Target.(dm.Linear)) != m.Legs[1] || m.Legs[0].Device != fork.Device {
		c.add("WrongTable", d.Name, restartDriver, "it copies\n%s\nand must copy from %v to\n%s", shorten(d.table), fork.Device, shorten(to))
		return nil
	}
	if h := c.o.hydrated; !h.missing(length).hold(w.span) && !h.has(w.span) {
		return nil
	}
	return w
}
