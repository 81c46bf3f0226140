package pool

import (
	"context"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// checkRoom keeps volumes from taking the extents that layers need to grow.
func (p *Pool) checkRoom(v *view, n lvm2.Extents) error {
	room := p.room(v)
	if n <= room {
		return nil
	}
	var debt lvm2.Extents
	for _, lv := range v.trash {
		debt += lv.Size()
	}
	if n <= room+debt {
		return &PendingError{wiping: true, What: fmt.Sprintf("wiping deleted volumes of volume group %s to make room for %d extents", v.vg.Name, n)}
	}
	return fmt.Errorf("%w: %d extents of %v are needed, volume group %s has room for %d (%d more are kept for snapshots)",
		ErrNoSpace, n, v.extent(), v.vg.Name, room, p.reserve(v))
}

// room is the number of extents that volumes may take.
func (p *Pool) room(v *view) lvm2.Extents {
	free, reserve := v.free.size(), p.reserve(v)
	if free <= reserve {
		return 0
	}
	return free - reserve
}

// reserve is the number of extents kept for layers.
func (p *Pool) reserve(v *view) lvm2.Extents {
	var total lvm2.Extents
	for _, pv := range v.vg.PVs {
		total += pv.PECount
	}
	return total * lvm2.Extents(p.config.LayerReserve) / 100
}

// Capacity returns the pool's room.
func (p *Pool) Capacity(context.Context) (Capacity, error) {
	v, err := p.latest()
	if err != nil {
		return Capacity{}, err
	}
	return p.capacity(v), nil
}

func (p *Pool) capacity(v *view) Capacity {
	var total lvm2.Extents
	for _, pv := range v.vg.PVs {
		total += pv.PECount
	}
	room := size.Bytes(p.room(v)) * v.extent()
	return Capacity{Total: size.Bytes(total) * v.extent(), Free: room, MaxVolume: room}
}
