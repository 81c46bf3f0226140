package pool

import (
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// checkReader checks a volume that shows a snapshot.
func (r *report) checkReader(v *view, o *volume) {
	at := r.at(o.lv)
	l, _, err := v.readFrom(o)
	switch length := v.bytesOf(o.lv).Sectors(); {
	case err != nil:
		r.add("CopySourceMissing", at, "delete the volume and restore it again", "the layer %s that it shows is gone", o.reads)
	case l.length != length:
		r.add("BadTags", at, restoreGroup, "it has %d sectors, what it shows has %d", length, l.length)
	}
	if o.transient && (o.chunk.Bytes() < cow.MinChunk || o.chunk&(o.chunk-1) != 0) {
		r.add("BadTags", at, restoreGroup, "tag %s: %d sectors", tag(tagChunk), o.chunk)
	}
	if !o.transient && !readOnlyLV(o.lv) {
		r.add("Unprotected", at, "lvchange -pr "+at, "it is for readers only and writable")
	}
}

// reader checks a volume that shows a snapshot.
func (c deviceCheck) reader() {
	top, store := c.look.at(c.o.lv, ""), c.look.at(c.o.lv, layerCOW)
	if top == nil {
		c.leftover(store)
		return
	}
	x, _, err := c.view.readFrom(c.o)
	if err != nil {
		return // and that is said already
	}
	c.needed(x.lv, "")
	below := c.look.at(x.lv, "")
	if c.node(top); below == nil {
		return
	}
	if f := c.o.fork; f != nil {
		c.names(c.o.lv, layerRecovered)
		c.names(f.lv, layerCOW)
		c.needed(c.o.lv, layerRecovered)
		c.needed(f.lv, layerCOW)
		recovered, store := c.look.at(c.o.lv, layerRecovered), c.look.at(f.lv, layerCOW)
		if recovered == nil || store == nil {
			return
		}
		c.table(c.o.lv, layerRecovered, whole(x.length, dm.Snapshot{Origin: below.Device, COW: store.Device, Persistence: dm.PersistentOverflow, Chunk: f.chunk}), false)
		below = recovered
	}
	if !c.o.transient {
		c.table(c.o.lv, "", whole(x.length, dm.Linear{Device: below.Device}), true)
		return
	}
	c.needed(c.o.lv, layerCOW)
	if store == nil {
		return
	}
	c.table(c.o.lv, "", whole(x.length, dm.Snapshot{Origin: below.Device, COW: store.Device, Persistence: dm.Transient, Chunk: c.o.chunk}), false)
	if table, err := c.pool.linearTable(c.view, c.o.lv); err == nil {
		c.table(c.o.lv, layerCOW, table, false)
	}
}
