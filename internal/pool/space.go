package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// checkRoom returns an error if there is no room for a volume of n extents on disks of a kind;
// with AnyKind, of any one kind. Extents that layers need to grow do not count as room.
// Errors: *PendingError if there is room once trash is wiped, ErrNoSpace otherwise.
func (p *Pool) checkRoom(v *view, block size.Bytes, n lvm2.Extents) error {
	var pending, unclear bool
	for _, kind := range v.KindsOf(block) {
		need, free := n+p.reserveOn(v, kind), v.FreeOn(kind).Size()
		if need <= free {
			return nil
		}
		pending = pending || need <= free+p.wipedSoon(v, kind)
		unclear = unclear || v.Unclear != nil && need <= free+v.TrashOn(kind)
	}
	room := p.roomOn(v, block)
	if unclear {
		return fmt.Errorf("%w: %d extents are needed, but there is room for only %d, and deleted volumes have the others: %w", ErrNoSpace, n, room, v.NotReclaimed())
	}
	if pending {
		return &PendingError{wiping: true, What: fmt.Sprintf("wiping deleted volumes of volume group %s to make room for %d extents", v.VG.Name, n)}
	}
	return fmt.Errorf("%w: %d extents of %v are needed%s, but volume group %s has room for %d (%d more are kept for snapshots)%s",
		ErrNoSpace, n, v.ExtentSize(), v.OnKind(block), v.VG.Name, room, p.reserve(v), p.notWiped(v))
}

// wipedSoon returns the number of extents on disks of a kind that the wiper will free. Trash
// that the wiper failed to wipe does not count.
func (p *Pool) wipedSoon(v *view, kind size.Bytes) (n lvm2.Extents) {
	if v.Unclear != nil {
		return 0
	}
	for _, lv := range v.Trash {
		if !p.wiper.stuck(lv.ID) {
			n += v.SizeOn(lv, kind)
		}
	}
	return n
}

// trimmedSoon returns an upper bound of the extents on disks of a kind that trimming frozen
// stores will free: all but the first extent of each store. Stores that could not be trimmed,
// and stores of volumes that LVM2 manages, do not count.
func (p *Pool) trimmedSoon(v *view, kind size.Bytes) (n lvm2.Extents) {
	for _, o := range v.Volumes.All() {
		for _, l := range o.Layers {
			if o.Theirs() == "" && p.canTrim(v, l) && !p.caretaker.failed(o, careTrim) {
				n += max(1, v.SizeOn(l.LV, kind)) - 1
			}
		}
	}
	return n
}

// notWiped returns text, for messages, about why trash is not wiped; "" if it is.
func (p *Pool) notWiped(v *view) string {
	if len(v.Trash) == 0 || p.wiper.problem() == nil {
		return ""
	}
	return fmt.Sprintf("; deleted volumes are not wiped: %v", p.wiper.problem())
}

// room returns the number of extents that volumes may take.
func (p *Pool) room(v *view) (room lvm2.Extents) {
	for _, kind := range v.KindsOf(catalog.AnyKind) {
		room += p.roomOn(v, kind)
	}
	return room
}

// roomOn returns the number of extents that one volume may take on disks of a kind; with
// AnyKind, on disks of the kind with the most room.
func (p *Pool) roomOn(v *view, block size.Bytes) (room lvm2.Extents) {
	for _, kind := range v.KindsOf(block) {
		free, reserve := v.FreeOn(kind).Size(), p.reserveOn(v, kind)
		room = max(room, max(free, reserve)-reserve)
	}
	return room
}

// reserve returns the number of extents that are reserved for layers.
func (p *Pool) reserve(v *view) lvm2.Extents {
	var total lvm2.Extents
	for _, pv := range v.VG.PVs {
		total += pv.PECount
	}
	return total * lvm2.Extents(p.config.LayerReserve) / 100
}

// reserveOn returns the part of the reserve on disks of a kind.
func (p *Pool) reserveOn(v *view, kind size.Bytes) lvm2.Extents {
	return v.DisksOn(kind).Size() * lvm2.Extents(p.config.LayerReserve) / 100
}

// Capacity returns the room for new volumes.
func (p *Pool) Capacity(context.Context) (Capacity, error) {
	v, err := p.latest()
	if err != nil {
		return Capacity{}, err
	}
	return p.capacity(v), nil
}

// capacity returns the room for new volumes: none while nothing can be created, even if
// extents are free.
func (p *Pool) capacity(v *view) Capacity {
	var total lvm2.Extents
	for _, pv := range v.VG.PVs {
		total += pv.PECount
	}
	c := Capacity{Total: size.Bytes(total) * v.ExtentSize()}
	if errors.Join(v.Writable(), p.roomForText(v)) == nil {
		c.Free, c.MaxVolume = size.Bytes(p.room(v))*v.ExtentSize(), size.Bytes(p.roomOn(v, catalog.AnyKind))*v.ExtentSize()
	}
	return c
}
