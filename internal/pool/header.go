package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// A disk that acknowledges flushes and loses writes may lose the header of a store. The
// kernel refuses a snapshot whose store begins with other content. But it takes a store
// that begins with zeroes for a new store, even on a read-only device: it forgets all
// chunks, and the snapshot shows its origin's present content without any error. So the
// driver looks before it loads a snapshot whose store the kernel will read, and after the
// kernel has refused one.
//
// A layer whose store has lost its header is lost, and its volume is usable. The store of a
// fork has acknowledged writes of the volume, so that volume is not usable. Nothing is
// checked in a transient volume's store, which has no header, nor in a flat store, which is
// thrown away when the pool is opened.

// headed is a store that should have a header.
type headed struct {
	lv     *lvm2.LV
	chunk  size.Bytes
	layer  *catalog.Layer // the layer whose store it is; nil for other stores
	frozen bool           // the store of a frozen layer, which always has a header
}

// headedStore returns the store of the persistent snapshot that s loads; nil if s loads
// something else.
func (c *carrier) headedStore(s step) *headed {
	if len(s.table) != 1 || s.of == nil {
		return nil
	}
	snap, is := s.table[0].target.(dm.Snapshot)
	if !is || snap.Persistence == dm.Transient || len(s.table[0].on) != 2 {
		return nil
	}
	id, _, _ := catalog.SplitUUID(c.view.VG.ID, s.table[0].on[1])
	lv := c.view.VG.LVByID(lvm2.ID(id))
	if lv == nil {
		return nil
	}
	if c.view.Flats.Get(lv.ID) != nil {
		return nil
	}
	layer := c.view.Layers.Get(lv.ID)
	return &headed{lv, snap.Chunk.Bytes(), layer, layer != nil && layer.Snap == nil}
}

// loadTable loads a table, unless it is a snapshot whose store has lost its header.
//
// Errors: *unrecordedLoss if the store is a layer's; ErrLost if it is another store.
func (c *carrier) loadTable(ctx context.Context, s step, d *kernelDevice, table dm.Table) error {
	store := c.headedStore(s)
	if store == nil || d.Live && inherits(d.table, table) {
		return c.dm.Load(s.name, table, s.readOnly)
	}
	// A cut loads a live layer while the volume runs. Its store is new and empty.
	top := c.k[c.view.topDevice(s.of.LV).uuid]
	running := top != nil && top.Live
	var why error
	if store.frozen || !running {
		why = store.headerLost(c.view)
	}
	if why == nil {
		err := c.dm.Load(s.name, table, s.readOnly)
		if err == nil {
			return nil
		}
		if why = store.headerLost(c.view); why == nil {
			return err
		}
	}
	l := store.layer
	switch {
	case l == nil:
		return store.lost(c.view, s.of, why)
	case !l.Lost && !store.frozen && running && !l.Named && !c.view.Pinned.Has(l.LV.ID):
		return why // the kernel has not cut it yet, and still has the former layer
	case !l.Lost:
		c.log.Error(why, "A disk has lost the header of a snapshot's store; the snapshot is lost", "snapshot", l.LV.Name)
		return &unrecordedLoss{layer: l.LV.ID, read: c.view}
	case store.frozen:
		return fmt.Errorf("snapshot %s/%s: %w: %w", c.view.VG.Name, l.LV.Name, ErrLost, why)
	}
	if err := c.condemn(ctx, l); err != nil {
		return err
	}
	return c.dm.Load(s.name, table, s.readOnly)
}

// inherits reports whether a snapshot with the new table gets the chunks from the snapshot
// that runs with the old table, so that the kernel does not read the store.
func inherits(old, new dm.Table) bool {
	if len(old) != 1 || len(new) != 1 {
		return false
	}
	from, is := old[0].Target.(dm.Snapshot)
	to, are := new[0].Target.(dm.Snapshot)
	return is && are && from.Origin == to.Origin && from.COW == to.COW
}

// headerLost returns the reason if the store has certainly lost its header. A store that
// cannot be read has not. A live layer or a fork that was never loaded has no header yet,
// and lists no chunk.
func (h *headed) headerLost(v *view) error {
	on := onDisks{view: v}
	defer on.close()
	store, err := on.store(h.lv, v.BytesOf(h.lv))
	if err != nil {
		return nil
	}
	_, err = store.Header()
	switch {
	case errors.Is(err, cow.ErrNotStore), errors.Is(err, cow.ErrDamaged):
		return err
	case errors.Is(err, cow.ErrFresh):
		if empty, readErr := store.Empty(h.chunk); h.frozen || readErr == nil && !empty {
			return err
		}
	}
	return nil
}

// lost returns the error for a fork o whose store has lost its header.
func (h *headed) lost(v *view, o *catalog.Volume, why error) error {
	return fmt.Errorf("%w: a disk has lost the header of the store %s/%s, and with it all writes to volume %s since it was made (%w); delete the volume",
		ErrLost, v.VG.Name, h.lv.Name, o.LV.Name, why)
}

// storeLost reports whether an error of reading a frozen layer's store says that the layer
// is lost: the kernel dropped it and nobody noticed, or a disk has lost the header.
func storeLost(err error) bool {
	return errors.Is(err, cow.ErrInvalid) || errors.Is(err, cow.ErrNotStore) || errors.Is(err, cow.ErrFresh)
}

// condemn makes the kernel load the snapshot of a layer as lost. The loss is on record.
func (c *carrier) condemn(ctx context.Context, l *catalog.Layer) error {
	d := c.view.cowDevice(l.LV)
	info, err := c.find(d)
	if err != nil {
		return err
	}
	if info == nil {
		return fmt.Errorf("device %s is gone: another process removed it", d.name)
	}
	path, err := c.dm.EnsureNode(ctx, d.name, info.Device)
	if err != nil {
		return err
	}
	return cow.Condemn(path, l.Chunk.Bytes())
}
