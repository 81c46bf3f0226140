package pool

import (
	"context"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// mapStore makes the device of a frozen store, or the one that existed what the metadata
// says; with grown only one that exists, of a store that is longer now. The kernel reads
// the store's size at each allocation, so growth counts at once. Stores grow while
// operations on their volume run: it is the latest metadata that counts, not those with
// which an operation began.
func (p *Pool) mapStore(ctx context.Context, v *view, lv *lvm2.LV, grown bool) (dev dm.Device, err error) {
	err = p.alone(ctx, lv.ID, func() error {
		if now := p.current.Load(); now.vg.LVByID(lv.ID) != nil {
			v, lv = now.leased(v.lease), now.vg.LVByID(lv.ID)
		}
		d := v.cowDevice(lv)
		info, err := p.find(d)
		if err != nil || info == nil && grown {
			return err
		}
		if g, growing := p.facts.growing.get(lv.ID); growing && g.braked.Load() && info != nil {
			braked := *info
			braked.Suspended = false // left to who holds it, unless the store changes
			info = &braked
		}
		table, err := v.linearTable(lv)
		if err != nil {
			return err
		}
		var pending bool
		// One that was live stays writable below its device.
		if dev, pending, err = p.ensureFrom(info, d, table, info == nil || info.ReadOnly); err == nil && pending {
			err = p.start(ctx, d, dev)
		}
		return err
	})
	return dev, err
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
