package lvm2

import (
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Extents is a number or position of extents, in units of VG.ExtentSize.
type Extents uint64

// VG is a volume group as its metadata text describes it. Its PVs and LVs are
// immutable: an edit replaces an LV by a changed copy, so a Clone is cheap and
// shares all that did not change.
type VG struct {
	Name       string
	ID         ID
	Seqno      uint64 // generation of the metadata; Commit counts it up
	Status     []string
	Flags      []string
	Tags       []string
	SystemID   string // the host that owns it; empty: any
	LockType   string // set for a volume group under lvmlockd
	ExtentSize size.Sectors
	MaxLV      uint64 // 0: no limit
	MaxPV      uint64 // 0: no limit
	PVs        []*PV
	LVs        []*LV // in file order; change it by Add, Replace and Remove only

	top     []entry  // the text's top level
	keys    []entry  // the volume group's section
	merging []string // links, stores and origins of snapshots that lvm2 is merging
	source  source   // the text it was read from, or committed as
	byName  map[string]*LV
	byID    map[ID]*LV
}

// source tells metadata texts apart.
type source struct {
	crc  uint32
	size size.Bytes
}

// entry is a key or section as it stands in the text. Those that a VG has in
// fields are written from the fields, in their place.
type entry struct{ key, source string }

// PV is a physical volume. It must not be changed.
type PV struct {
	ID      ID
	Device  string       // path where it was found; empty: missing
	Size    size.Sectors // of the device when it was made; 0 if the text does not say
	PEStart size.Sectors // where extent 0 begins
	PECount Extents
	Status  []string
	Flags   []string
	Tags    []string

	BlockSize size.Bytes // logical block size of the device; 0: missing

	at   identity // of the device; zero: missing
	hint string   // the device's path when the text was written
	part error    // of one that is missing: which device shows it and is a part of what is missing
	key  string   // the name that segments call it by: pv0, pv1, …
	text string
}

// Number returns the number of the device; zeroes if it is missing.
func (pv *PV) Number() (major, minor uint32) { return unix.Major(pv.at.dev), unix.Minor(pv.at.dev) }

// SameDevice reports whether other, of another reading, is on the same device.
func (pv *PV) SameDevice(other *PV) bool { return pv.at == other.at }

// Missing reports whether the physical volume was not found, or is marked as
// missing: lvm2 does that when it writes without it, and its content is then
// out of date even when it is back.
func (pv *PV) Missing() bool {
	return pv.Device == "" || slices.Contains(pv.Flags, statusMissing) || slices.Contains(pv.Status, statusMissing)
}

// Part tells of a physical volume that was not found which device shows it and is only a
// part of its device, as the path of a multipath map; nil if none does.
func (pv *PV) Part() error { return pv.part }

// Allocatable reports whether extents of the physical volume may be given out.
func (pv *PV) Allocatable() bool {
	return slices.Contains(pv.Status, statusAllocatable) && !pv.Missing()
}

// Offset returns where an extent begins on the physical volume's device.
func (vg *VG) Offset(pv *PV, e Extents) size.Sectors {
	return pv.PEStart + size.Sectors(e)*vg.ExtentSize
}

// LV is a logical volume. Once it is in a VG it must not be changed: change a
// Clone and Replace it.
type LV struct {
	Name         string
	ID           ID
	Status       []string
	Flags        []string
	Tags         []string
	CreationTime time.Time // to the second; zero if unknown
	CreationHost string
	Segments     []Segment // in order of Start

	extra string // keys that are not modelled, as they were written
	text  string // the section as it is written; empty until the LV is in a VG
}

// Segment types that are modelled; all others are carried through.
const (
	TypeStriped  = "striped" // also linear: one stripe
	TypeSnapshot = "snapshot"
	TypeError    = "error" // takes no extents; every read and write of it fails
)

// Segment maps a part of a logical volume.
type Segment struct {
	Start      Extents // in the logical volume
	Count      Extents
	Type       string
	Stripes    []Stripe     // of TypeStriped
	StripeSize size.Sectors // of TypeStriped with several stripes
	Snapshot   *SnapshotSegment

	extra string // keys that are not modelled, as they were written
	areas []area // of other types: what may be extents of a PV
}

// Stripe is where a stripe of a segment begins: on a physical volume or, in
// what lvm2 stacks, in another logical volume.
type Stripe struct {
	PV    int    // index in VG.PVs; -1: LV
	LV    string // name of a logical volume, when PV is -1
	Start Extents
}

// SnapshotSegment makes its (hidden) logical volume the link between an origin
// and the store of a snapshot. The snapshot's name and id are those of the store.
type SnapshotSegment struct {
	ChunkSize size.Sectors
	Origin    string // name of the origin
	COWStore  string // name of the logical volume that holds the changes
	Merging   bool   // the snapshot is being merged into its origin
}

// Size returns the number of extents of the logical volume.
func (lv *LV) Size() Extents {
	var n Extents
	for _, s := range lv.Segments {
		n += s.Count
	}
	return n
}

// Clone returns a copy that shares nothing with lv and may be changed.
func (lv *LV) Clone() *LV {
	c := *lv
	c.text = ""
	c.Status, c.Flags, c.Tags = slices.Clone(lv.Status), slices.Clone(lv.Flags), slices.Clone(lv.Tags)
	c.Segments = slices.Clone(lv.Segments)
	for i := range c.Segments {
		s := &c.Segments[i]
		s.Stripes = slices.Clone(s.Stripes)
		if s.Snapshot != nil {
			snapshot := *s.Snapshot
			s.Snapshot = &snapshot
		}
	}
	return &c
}

// Clone returns a copy whose own fields may be changed; PVs and LVs are shared.
func (vg *VG) Clone() *VG {
	c := *vg
	c.Status, c.Flags, c.Tags = slices.Clone(vg.Status), slices.Clone(vg.Flags), slices.Clone(vg.Tags)
	c.PVs, c.LVs = slices.Clone(vg.PVs), slices.Clone(vg.LVs)
	c.byName, c.byID = maps.Clone(vg.byName), maps.Clone(vg.byID)
	return &c
}

// LV returns the logical volume of that name, nil if there is none.
func (vg *VG) LV(name string) *LV { return vg.byName[name] }

// LVByID returns the logical volume of that id, nil if there is none.
func (vg *VG) LVByID(id ID) *LV { return vg.byID[id] }

// PVIndex returns the index in PVs of the physical volume of that id, -1 if
// there is none.
func (vg *VG) PVIndex(id ID) int {
	return slices.IndexFunc(vg.PVs, func(pv *PV) bool { return pv.ID == id })
}
