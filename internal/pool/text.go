package pool

import (
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	textReserve = 8 // a textReserve-th of the metadata area is reserved for growth, losses, deletes, wiping and hydration; creation must not use it
)

// Metadata is the fill level of the group's metadata areas.
type Metadata struct {
	Size     size.Bytes `json:"size"`     // largest possible text in the smallest area in use
	Used     size.Bytes `json:"used"`     // size of the text
	Reserved size.Bytes `json:"reserved"` // part of Size that is not for new volumes and snapshots
}

// full reports whether there is no room for new volumes and snapshots.
func (m Metadata) full() bool { return m.Size > 0 && m.Used+m.Reserved > m.Size }

func (g *group) metadata(v *view) Metadata {
	most := size.Bytes(g.textMost.Load())
	return Metadata{Size: most, Used: v.VG.TextSize(), Reserved: most / textReserve}
}

// enlarge is the advice for a full metadata area.
const enlarge = "delete volumes or snapshots, or add a disk with a larger metadata area (docs/guides/pools.md)"

// roomForText returns ErrNoSpace if new volumes and snapshots would use metadata that growing
// stores and deletes need.
func (p *Pool) roomForText(v *view) error {
	if m := p.metadata(v); m.full() {
		return fmt.Errorf("%w: the metadata area of volume group %s is full: %v of %v are in use, and %v are kept for changes that must not fail; %s",
			ErrNoSpace, v.VG.Name, m.Used, m.Size, m.Reserved, enlarge)
	}
	return nil
}

// roomForStore returns ErrNoSpace if there is no room for a new snapshot's first store of n
// extents. Half of the reserve stays free for the live stores of other volumes. The error is
// a *noRoomYet if there may be room soon: stores of former cuts are not trimmed yet, or the
// freed extents are not wiped yet.
func (p *Pool) roomForStore(v *view, o *catalog.Volume, n lvm2.Extents) error {
	kind, err := v.Kind(o.LV)
	if err != nil {
		return err
	}
	left, on, spare := v.Free.Size(), v.FreeOn(kind).Size(), lvm2.Extents(0)
	if v.OthersGrow(o) {
		spare = p.reserve(v) / 2
	}
	if n+spare <= left && n <= on {
		return nil
	}
	err = fmt.Errorf("%w: a snapshot's store needs %d extents%s, but volume group %s has %d free, of which %d are kept for growing the stores of other volumes%s; delete volumes or snapshots, or extend the volume group",
		ErrNoSpace, n, v.OnKind(kind), v.VG.Name, left, spare, p.notWiped(v))
	if n+spare <= left+p.wipedSoon(v, catalog.AnyKind)+p.trimmedSoon(v, catalog.AnyKind) && n <= on+p.wipedSoon(v, kind)+p.trimmedSoon(v, kind) {
		return &noRoomYet{err}
	}
	return err
}
