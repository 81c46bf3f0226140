package lvm2

import (
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/index"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Extents is a number or position of extents, in units of VG.ExtentSize.
type Extents uint64

// VG is a volume group as its metadata text describes it. A VG comes from Read,
// ParseVG or Clone; the zero value is not usable.
//
// PVs and LVs are immutable: an edit replaces an LV with a changed copy. So a Clone
// is cheap, because it shares them.
type VG struct {
	Name       string
	ID         ID
	Seqno      uint64   // generation of the metadata; Commit increments it
	Status     []string // status words, such as StatusWrite
	Flags      []string
	Tags       []string
	SystemID   string // the host that owns the volume group; empty: any host
	LockType   string // set for a volume group under lvmlockd
	ExtentSize size.Sectors
	MaxLV      uint64 // 0: no limit
	MaxPV      uint64 // 0: no limit
	PVs        []*PV
	LVs        []*LV // in file order; use only Add, Replace and Remove to change it

	top     []entry  // the text's top level
	keys    []entry  // the volume group's section
	merging []string // links, stores and origins of snapshots that lvm2 is merging
	source  source   // the text from which the VG was read, or as which it was committed
	byName  index.Map[string, *LV]
	byID    index.Map[ID, *LV]
	placed  index.Map[uint64, []use] // areas of striped segments, by their begin
	lvText  size.Bytes               // length of the texts of all LVs

	edition   Edition
	base      Edition         // the edition that the VG was cloned from
	changed   map[ID]struct{} // LVs that may differ from those of base
	checked   bool            // the VG passed validate, and since then only these LVs
	unchecked map[ID]string   // may have changed; each with its name at that time, "" if it is new
}

// Edition identifies a VG, and no later change of it. It lets a caller that derived
// something from the VG derive the same from a Clone, by the changed LVs alone.
type Edition struct{ of *byte }

// newEdition returns an edition that no other VG has.
func newEdition() Edition { return Edition{new(byte)} }

// Edition returns the edition of the volume group as it is now. Each change gives it
// another one.
func (vg *VG) Edition() Edition { return vg.edition }

// ChangedSince returns the ids of the LVs that may have been added, replaced or
// removed since an edition. known is false if the edition is not the VG itself or the
// VG that it was cloned from.
func (vg *VG) ChangedSince(e Edition) (ids []ID, known bool) {
	switch e {
	case vg.edition:
		return nil, true
	case vg.base:
		return slices.Sorted(maps.Keys(vg.changed)), true
	}
	return nil, false
}

// source identifies a metadata text.
type source struct {
	crc  uint32
	size size.Bytes
}

// entry is a key or section of the text and its position. An entry for which VG has
// a field is written from the field.
type entry struct{ key, source string }

// PV is a physical volume. It must not be changed.
type PV struct {
	ID      ID
	Device  string       // path of its device; empty: missing
	Size    size.Sectors // size of the device when the PV was made; 0: unknown
	PEStart size.Sectors // offset of extent 0 on the device
	PECount Extents      // number of extents
	Status  []string     // status words, such as ALLOCATABLE
	Flags   []string     // flags, such as MISSING
	Tags    []string

	BlockSize size.Bytes // logical block size of the device; 0: missing

	at   identity // of the device; zero: missing
	hint string   // the device's path when the text was written
	part error    // of a missing PV, see Part
	key  string   // the PV's name in segments: pv0, pv1, …
	text string
}

// Number returns the number of the device, and zeroes if it is missing.
func (pv *PV) Number() (major, minor uint32) { return unix.Major(pv.at.dev), unix.Minor(pv.at.dev) }

// SameDevice reports whether pv and other, from another Read, are on the same
// device.
func (pv *PV) SameDevice(other *PV) bool { return pv.at == other.at }

// Missing reports whether the physical volume was not found, or is marked as
// missing. lvm2 marks a physical volume as missing when it writes metadata without
// it. The content is then out of date, also after the device has returned.
func (pv *PV) Missing() bool {
	return pv.Device == "" || slices.Contains(pv.Flags, statusMissing) || slices.Contains(pv.Status, statusMissing)
}

// Part returns why a device that shows this missing physical volume is only a part
// of the physical volume's device, such as a path of a multipath map. It returns nil
// if there is no such device.
func (pv *PV) Part() error { return pv.part }

// Allocatable reports whether extents of the physical volume may be allocated.
func (pv *PV) Allocatable() bool {
	return slices.Contains(pv.Status, statusAllocatable) && !pv.Missing()
}

// Offset returns the offset of extent e on the physical volume's device.
func (vg *VG) Offset(pv *PV, e Extents) size.Sectors {
	return pv.PEStart + size.Sectors(e)*vg.ExtentSize
}

// LV is a logical volume. It must not be changed once it is in a VG: change a Clone
// and call VG.Replace.
type LV struct {
	Name         string
	ID           ID       // a new LV needs a NewID
	Status       []string // status words, such as StatusVisible
	Flags        []string // flags, such as FlagActivationSkip
	Tags         []string
	CreationTime time.Time // to the second; zero if unknown
	CreationHost string    // written only with a CreationTime
	Segments     []Segment // in order of Start; Add and Replace sort them

	extra string // source text of keys without a field
	text  string // the section's text; empty until the LV is in a VG
}

// Segment types that this package edits. It preserves segments of other types.
const (
	TypeStriped  = "striped" // with one stripe: linear
	TypeSnapshot = "snapshot"
	TypeError    = "error" // has no extents of a PV; every read and write fails
)

// Segment maps a part of a logical volume.
type Segment struct {
	Start      Extents // first extent, counted in the logical volume
	Count      Extents
	Type       string
	Stripes    []Stripe     // of TypeStriped
	StripeSize size.Sectors // of TypeStriped with several stripes
	Snapshot   *SnapshotSegment

	extra string // source text of keys without a field
	areas []area // of other types: possible extents of PVs
}

// Stripe is the beginning of a stripe of a segment: on a physical volume or, if lvm2
// stacks logical volumes, in another logical volume.
type Stripe struct {
	PV    int     // index in VG.PVs; -1: the stripe is in LV
	LV    string  // name of a logical volume if PV is -1
	Start Extents // first extent, counted in the PV or LV
}

// SnapshotSegment makes its hidden logical volume the link between an origin and the
// store of a snapshot. The snapshot has the name and id of the store.
type SnapshotSegment struct {
	ChunkSize size.Sectors
	Origin    string // name of the origin
	COWStore  string // name of the logical volume that is the store
	Merging   bool   // lvm2 is merging the snapshot into its origin
}

// Size returns the length of the logical volume in extents.
func (lv *LV) Size() Extents {
	var n Extents
	for _, s := range lv.Segments {
		n += s.Count
	}
	return n
}

// Clone returns a deep copy, which may be changed.
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

// Clone returns a copy that may be changed. It shares the PVs and LVs with vg.
func (vg *VG) Clone() *VG {
	c := *vg
	c.Status, c.Flags, c.Tags = slices.Clone(vg.Status), slices.Clone(vg.Flags), slices.Clone(vg.Tags)
	c.PVs, c.LVs = slices.Clone(vg.PVs), slices.Clone(vg.LVs)
	c.byName, c.byID, c.placed = vg.byName.Copy(), vg.byID.Copy(), vg.placed.Copy()
	c.base, c.edition, c.changed, c.unchecked = vg.edition, newEdition(), nil, maps.Clone(vg.unchecked)
	return &c
}

// LV returns the logical volume with the name, and nil if there is none.
func (vg *VG) LV(name string) *LV { return vg.byName.Get(name) }

// LVByID returns the logical volume with the id, and nil if there is none.
func (vg *VG) LVByID(id ID) *LV { return vg.byID.Get(id) }

// PVIndex returns the index in PVs of the physical volume with the id, and -1 if
// there is none.
func (vg *VG) PVIndex(id ID) int {
	return slices.IndexFunc(vg.PVs, func(pv *PV) bool { return pv.ID == id })
}
