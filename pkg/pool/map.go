package pool

import (
	"context"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// storeUse says what mapStore makes a store's device for.
type storeUse int

const (
	storeNew       storeUse = iota // to be written to; it has no device
	storeLive                      // to be written to
	storeFrozen                    // to be read; one that was live stays writable below its device
	storeGrown                     // only if it exists: to be longer
	storeStretched                 // for its snapshot to be constructed: as long as is of use, the rest on nothing
)

// mapStore makes the device of a store, or makes the one that existed what
// the metadata says. The kernel reads the store's size at each allocation, so growth
// counts at once. Stores grow while operations on their volume run: it is the
// latest metadata that counts, not those with which an operation began.
func (p *Pool) mapStore(ctx context.Context, v *view, lv *lvm2.LV, use storeUse) (dev dm.Device, existed bool, err error) {
	release, err := p.keys.lock(ctx, storeKey(lv.ID))
	if err != nil {
		return dev, false, err
	}
	defer release()
	if now := p.current.Load(); now.vg.LVByID(lv.ID) != nil {
		v, lv = now.leased(v.lease), now.vg.LVByID(lv.ID)
	}
	d := v.cowDevice(lv)
	var info *dm.Info
	if use != storeNew {
		if info, err = p.find(d); err != nil || info == nil && use == storeGrown {
			return dev, false, err
		}
	}
	if g, growing := p.facts.growing.get(lv.ID); growing && g.braked.Load() && info != nil {
		braked := *info
		braked.Suspended = false // left to who holds it, unless the store changes
		info = &braked
	}
	table, err := v.linearTable(lv)
	if err != nil {
		return dev, false, err
	}
	if s := v.storeOf(lv.ID); use == storeStretched && s != nil {
		table = stretched(table, sectors(v, v.largest(s)))
	}
	readOnly := (use == storeFrozen || use == storeGrown) && (info == nil || info.ReadOnly)
	dev, pending, err := p.ensureFrom(info, d, table, readOnly)
	if err == nil && pending {
		err = p.start(ctx, d, dev)
	}
	return dev, info != nil, err
}

// The kernel looks up chunks in a hash table with a bucket for each chunk that the
// store has when it constructs the snapshot, hashTable at most, and keeps it for
// life (init_hash_tables in dm-snap.c). Rows of hashShared chunks of the origin
// share a bucket in any case.
const (
	hashTable  = 2 << 20 / 8
	hashShared = 256
)

// crowded tells whether a store is so short that its snapshot's hash table would have
// less than a bucket for each such row. Lookups would become slow once the store has grown.
func crowded(store, origin size.Sectors, chunk size.Sectors) bool {
	return store/chunk < min(hashTable, origin/chunk/hashShared)
}

// stretched makes a table of that length, the end of which fails.
func stretched(t dm.Table, length size.Sectors) dm.Table {
	if start := t.Length(); start < length {
		t = append(t, dm.Segment{Start: start, Length: length - start, Target: dm.ErrorTarget{}})
	}
	return t
}
