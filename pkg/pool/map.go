package pool

import (
	"context"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// storeUse says what mapStore makes a store's device for.
type storeUse int

const (
	storeNew    storeUse = iota // to be written to; it has no device
	storeLive                   // to be written to
	storeFrozen                 // to be read; one that was live stays writable below its device
	storeGrown                  // only if it exists: to be longer
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
		v, lv = now, now.vg.LVByID(lv.ID)
	}
	d := p.device(v, lv, layerCOW, udevCOW)
	var info *dm.Info
	if use != storeNew {
		if info, err = p.find(d); err != nil || info == nil && use == storeGrown {
			return dev, false, err
		}
	}
	table, err := p.linearTable(v, lv)
	if err != nil {
		return dev, false, err
	}
	readOnly := use != storeNew && use != storeLive && (info == nil || info.ReadOnly)
	dev, pending, err := p.ensureFrom(info, d, table, readOnly)
	if err == nil && pending {
		err = p.start(ctx, d, dev)
	}
	return dev, info != nil, err
}
