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
	storeStretched                 // for its snapshot to be constructed: as long as is of use, the rest on what fails
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
	s := v.storeOf(lv.ID)
	readOnly := (use == storeFrozen || use == storeGrown) && (info == nil || info.ReadOnly)
	if gate := s != nil && p.hasGate(s) && use != storeFrozen; !readOnly && (gate || info != nil && p.config.Gate && (s == nil || !s.fork)) {
		most := size.Sectors(0) // no gate, and none that it had when it was written to
		if gate {
			most = sectors(v, v.largest(s))
		} else if use == storeStretched && s != nil {
			table = stretched(table, sectors(v, v.largest(s)))
		}
		if dev, err = p.gated(ctx, v, lv, d, info, table, most); err == nil && gate && use == storeStretched {
			err = p.failGate(v, lv)
		}
		return dev, info != nil, err
	}
	if use == storeStretched && s != nil {
		table = stretched(table, sectors(v, v.largest(s)))
	}
	dev, pending, err := p.ensureFrom(info, d, table, readOnly)
	if err == nil && pending {
		err = p.start(ctx, d, dev)
	}
	return dev, info != nil, err
}

// hasGate says whether the end of a store lies on a gate while it is written to.
// That of a fork does not: who writes to a fork must not wait inside it when the
// pool is full, because hydration, which ends that, suspends the fork.
func (p *Pool) hasGate(s *store) bool { return p.config.Gate && !s.fork }

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
