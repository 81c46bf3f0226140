package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// checkRoom keeps volumes from taking the extents that layers need to grow, on
// disks of one kind or of anyKind.
func (p *Pool) checkRoom(v *view, block size.Bytes, n lvm2.Extents) error {
	room := p.roomOn(v, block)
	if n <= room {
		return nil
	}
	if err := p.soon(v, n, n-room); err != nil {
		return err
	}
	return fmt.Errorf("%w: %d extents of %v are needed%s, volume group %s has room for %d (%d more are kept for snapshots)",
		ErrNoSpace, n, v.extent(), v.onKind(block), v.vg.Name, room, p.reserve(v))
}

// soon says that n extents, of which lacking are not free, are free once what is
// deleted is wiped and frozen stores are trimmed: *PendingError. nil if they are not.
func (p *Pool) soon(v *view, n, lacking lvm2.Extents) error {
	coming := p.comingFree(v)
	if lacking > coming {
		return nil
	}
	if v.unclear != nil {
		return fmt.Errorf("%w: %d extents are needed, there is room for %d, and deleted volumes have %d: %w", ErrNoSpace, n, n-lacking, coming, v.notReclaimed())
	}
	return &PendingError{wiping: true, What: fmt.Sprintf("wiping deleted volumes and ends of stores of volume group %s to make room for %d extents", v.vg.Name, n)}
}

// comingFree is how many extents, at most, become free by themselves: those of deleted
// volumes, and of frozen stores that are not trimmed yet, if that has not failed, all but
// the first.
func (p *Pool) comingFree(v *view) (n lvm2.Extents) {
	for _, lv := range v.trash {
		n += lv.Size()
	}
	for _, o := range v.volumes {
		for _, l := range o.layers {
			if p.canTrim(v, l) && !p.caretaker.failed(o, careTrim) {
				n += l.lv.Size() - 1
			}
		}
	}
	return n
}

// room is the number of extents that volumes may take.
func (p *Pool) room(v *view) (room lvm2.Extents) {
	for _, kind := range v.kindsOf(anyKind) {
		room += p.roomOn(v, kind)
	}
	return room
}

// roomOn is the number of extents that one volume may take on disks of a kind.
func (p *Pool) roomOn(v *view, block size.Bytes) (room lvm2.Extents) {
	for _, kind := range v.kindsOf(block) {
		free, reserve := v.freeOn(kind).size(), v.disksOn(kind).size()*lvm2.Extents(p.config.LayerReserve)/100
		room = max(room, max(free, reserve)-reserve)
	}
	return room
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

// capacity is the pool's room: none while nothing can be made, whatever is free.
func (p *Pool) capacity(v *view) Capacity {
	var total lvm2.Extents
	for _, pv := range v.vg.PVs {
		total += pv.PECount
	}
	c := Capacity{Total: size.Bytes(total) * v.extent()}
	if errors.Join(v.writable(), p.roomForText(v)) == nil {
		c.Free, c.MaxVolume = size.Bytes(p.room(v))*v.extent(), size.Bytes(p.roomOn(v, anyKind))*v.extent()
	}
	return c
}
