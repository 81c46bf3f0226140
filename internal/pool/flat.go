package pool

import (
	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// The driver reads an old snapshot with many newer layers by a flat store, instead of by
// one device for each layer:
//
//	pool-snapK     snapshot  <pool-snapN> <pool-flat-cow> P <chunk>, read-only
//	pool-flat-cow  linear    header and areas: the flat store's own extents
//	               error     between two areas, where nobody reads
//	               linear    the stores of layers K to N-1, one after another
//
// Its areas list for each chunk the oldest of these layers that has the chunk (cow.Merge).
// snapN was the live layer when the store was made. Each later cut adds a device below.
// Once there are more than FlatLevels devices, the driver makes another store, which
// replaces this one. The driver deletes the store when nobody reads the snapshot any more.
//
// The states of a flat store in the metadata:
//
//	made     the logical volume with its extents, without tagUsed
//	written  tagUsed, once header and areas are on the disk
//	gone     trash, once its device is gone
//
// The layers of a flat store are frozen and trimmed, and are not folded while the store
// exists, so that its table can be computed from the metadata at any time.

// flatTable returns the table of a flat store's device.
func (v *view) flatTable(o *catalog.Volume, f *catalog.Flat) (dm.Table, error) {
	own, err := v.linearTable(f.LV)
	if err != nil {
		return nil, err
	}
	var t dm.Table
	put := func(part dm.Table) {
		for _, s := range part {
			s.Start = t.Length()
			t = append(t, s)
		}
	}
	for _, piece := range f.Layout().Pieces() {
		t = stretched(t, piece.At)
		put(cutTable(own, piece.From, piece.From+piece.Length))
	}
	for _, l := range o.Path(v.Layers.Get(f.Reads)) {
		if l.LV.ID == f.Over {
			break
		}
		store, err := v.linearTable(l.LV)
		if err != nil {
			return nil, err
		}
		put(cutTable(store, 0, l.Used))
	}
	return t, nil
}
