package pool

import (
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const (
	textReserve = 8  // part of the metadata area that what creates leaves to growth, losses, deletes, wiping and hydration
	mostReaders = 64 // read-only and transient volumes of one snapshot, or of one volume: they take no extents, but metadata
)

// Metadata is how full the group's metadata areas are.
type Metadata struct {
	Size     size.Bytes `json:"size"`     // that the text may have in the smallest area in use
	Used     size.Bytes `json:"used"`     // that it has
	Reserved size.Bytes `json:"reserved"` // of Size, what volumes and snapshots cannot be made with
}

// full says whether nothing more can be made.
func (m Metadata) full() bool { return m.Size > 0 && m.Used+m.Reserved > m.Size }

func (g *group) metadata(v *view) Metadata {
	most := size.Bytes(g.textMost.Load())
	return Metadata{Size: most, Used: v.vg.TextSize(), Reserved: most / textReserve}
}

// enlarge says what to do when the metadata area is full.
const enlarge = "delete volumes or snapshots, or add a disk with a larger metadata area (docs/guides/pools.md)"

// roomForText refuses what would take the metadata that stores need to grow, and
// deletes to be written down.
func (p *Pool) roomForText(v *view) error {
	if m := p.metadata(v); m.full() {
		return fmt.Errorf("%w: the metadata area of volume group %s is full: %v of %v are in use, and %v are kept for changes that must not fail; %s",
			ErrNoSpace, v.vg.Name, m.Used, m.Size, m.Reserved, enlarge)
	}
	return nil
}

// roomForReader refuses more than mostReaders of one source.
func (v *view) roomForReader(from Source) error {
	n := 0
	for _, o := range v.volumes {
		if o.reading() && o.source == from {
			n++
		}
	}
	if n >= mostReaders {
		return fmt.Errorf("%w: %s %s/%s has %d read-only and transient volumes, as many as it may have; let pods share a read-only claim, or delete some",
			ErrNoSpace, from.Kind, v.vg.Name, from.LV, n)
	}
	return nil
}

// roomForStore refuses a new snapshot's first store for which there is no room, or that
// would take what live stores of others rely on: half of the reserve. It is a *noRoomYet
// where there may be room in a moment: stores of former cuts are not trimmed yet, or what
// they gave back is not wiped.
func (p *Pool) roomForStore(v *view, o *volume, n lvm2.Extents) error {
	kind, err := v.kind(o.lv)
	if err != nil {
		return err
	}
	left, on, spare := v.free.size(), v.freeOn(kind).size(), lvm2.Extents(0)
	if v.othersGrow(o) {
		spare = p.reserve(v) / 2
	}
	if n+spare <= left && n <= on {
		return nil
	}
	err = fmt.Errorf("%w: a snapshot's store needs %d extents%s, but volume group %s has %d free, of which %d are kept for growing the stores of other volumes%s; delete volumes or snapshots, or extend the volume group",
		ErrNoSpace, n, v.onKind(kind), v.vg.Name, left, spare, p.notWiped(v))
	if n+spare <= left+p.wipedSoon(v, anyKind)+p.trimmedSoon(v, anyKind) && n <= on+p.wipedSoon(v, kind)+p.trimmedSoon(v, kind) {
		return &noRoomYet{err}
	}
	return err
}

// othersGrow says whether stores of other volumes than o may have to grow.
func (v *view) othersGrow(o *volume) bool {
	for _, x := range v.volumes {
		l := x.live()
		if x != o && l != nil && !l.lost && l.lv.Size() < v.largest(l.store(x)) || x.fork != nil {
			return true
		}
	}
	return false
}
