package catalog

import (
	"fmt"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/index"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Volume is a logical volume of role volume with its history.
type Volume struct {
	LV         *lvm2.LV
	Name       string
	Mode       Mode
	FS         string
	Formatted  bool
	ReadOnly   bool
	Shared     bool
	Raw        bool       // it was a block device until its mode changed
	asked      size.Bytes // size in the request; 0 if it is the actual size
	Source     Source
	SourcePool string       // pool of Source; "" for this pool
	CopyOf     lvm2.ID      // the layer that a fork reads through; "" once the volume is hydrated
	Hydrated   Hydrated     // the parts of a fork that are in the volume's own extents
	Fork       *ForkStore   // the store for writes to a fork
	Reads      lvm2.ID      // the layer that a reader shows
	Transient  bool         // a writable reader; its writes last as long as its device
	Chunk      size.Sectors // chunk size of a transient volume's store
	Begun      bool         // a transient volume was activated
	Reset      bool         // a transient volume lost its writes, and was activated again
	Unknown    RangeSet     // logical extents that may hold an earlier owner's bytes
	headKept   bool         // an older release recorded unknown; see zeroedHead
	Deleted    bool
	Copying    *CopyState // the copy from another pool that is not complete yet; nil if there is none
	LentTo     string     // POOL/NAME of the volume into which another pool copies this one
	Former     string     // name of the logical volume that this was before a rollback; "" if there was none
	Layers     []*Layer   // oldest first
	Flats      []*Flat    // flat stores of the history
	foreignCow bool       // has snapshots that LVM2 made
	Merging    bool       // lvm2 merges a snapshot into it, or will at the next activation
	Odd        error      // set if a tag of the volume or of its history is not understood
}

// Layer is a COW store: a logical volume of role layer.
type Layer struct {
	LV       *lvm2.LV
	Of       lvm2.ID
	Name     string // CSI name of the snapshot, if named
	Named    bool
	Order    uint64 // place in the history
	over     uint64 // place of the layer that it reads through, if not the next one
	Through  uint64 // place of the last layer that was folded into it, or its own place
	Created  time.Time
	Length   size.Sectors // of the volume at the cut
	Asked    size.Bytes   // size in the request for the volume; 0 if it is Length
	Chunk    size.Sectors
	Lost     bool
	Used     size.Sectors // used part of a trimmed store
	Trimmed  bool         // the unused end of the store was freed
	Exact    bool         // the store's chunks below Bound are exactly the chunks that changed until the next cut
	Bound    size.Sectors // 0 if Exact holds for the whole store
	Superset bool         // the store has more chunks than changed until the next cut
	unknown  RangeSet     // the volume's unknown extents at the cut
	headKept bool         // an older release recorded unknown; see zeroedHead
	Blank    bool         // the volume had no file system yet at the cut
	Snap     *lvm2.LV     // the hidden logical volume with the snapshot segment; only the live layer has one
	odd      error        // set if a tag is not understood
}

// sourceHere returns the name of the logical volume of this group that v was made from; ""
// if there is none.
func (v *Volume) sourceHere() string {
	if v.SourcePool != "" {
		return ""
	}
	return v.Source.LV
}

// Theirs explains why the driver leaves the volume as it is: LVM2 is working on it, or its
// tags are not understood. It returns "" for a volume that the driver may change.
func (v *Volume) Theirs() string {
	switch {
	case v.Odd != nil:
		return fmt.Sprintf("its tags are not understood (%v)", v.Odd)
	case v.Merging:
		return "lvm2 is merging a snapshot into it"
	case v.foreignCow:
		return "it has snapshots that LVM2 made"
	case v.Reading() && !v.Transient:
		if !takesNothing(v.LV) {
			return "it shows a snapshot, but has extents of its own"
		}
	case !Linear(v.LV):
		return "it is not linear, as during a pvmove"
	}
	return ""
}

// View is the decoded form of one generation of the group's metadata. It does not change
// once it is published, so it may be used concurrently. It shares what did not change with the
// generation before.
type View struct {
	VG        *lvm2.VG
	Volumes   index.Map[lvm2.ID, *Volume]
	Layers    index.Map[lvm2.ID, *Layer]
	Flats     index.Map[lvm2.ID, []*Flat]   // by the layer that is read through them
	Flattened index.Map[lvm2.ID, bool]      // layers that are part of a flat store
	Named     index.Map[string, *Volume]    // by CSI name, without deleted volumes
	Snapshots index.Map[string, *Layer]     // by CSI name
	Pinned    index.Map[lvm2.ID, []lvm2.ID] // layers that forks and readers read through, each with these volumes
	Trash     []*lvm2.LV
	Strange   []string // messages about logical volumes whose tags make no sense
	Unclear   error    // the first tag that is not understood; while it is set, nothing is deleted, because the tag may name any logical volume
	Free      RangeSet // extents that can be allocated
	Clean     RangeSet // free extents that hold zeroes

	untrimmed index.Map[lvm2.ID, *Layer]     // see Layer.Untrimmed
	edition   lvm2.Edition                   // of the group that the links are of
	decoded   index.Map[lvm2.ID, decoded]    // every logical volume
	forks     index.Map[lvm2.ID, *ForkStore] // by the id of the store
	of        index.Map[lvm2.ID, []lvm2.ID]  // layers and stores by the volume that their tags name
	links     index.Map[string, []*lvm2.LV]  // hidden logical volumes of snapshots, by the names of origin and store
	sources   index.Map[string, int]         // how many volumes name a logical volume as their source, or as the volume of their snapshots
	doubtful  map[lvm2.ID]error              // volumes whose history has a tag that is not understood
	twice     bool                           // a CSI name, the place of a layer or the store of a fork is given twice, so that the order of the links matters
	guessed   bool                           // an extent may belong to several logical volumes: for segments of other types that is a guess
}

// giveUp tells the user how to delete a store whose volume is gone. After lvremove its
// extents could get another owner while a device still maps them.
func (v *View) giveUp(lv *lvm2.LV, of lvm2.ID) string {
	if left := v.VG.LVByID(of); left != nil {
		return fmt.Sprintf("correct the tags of %s/%s", v.VG.Name, left.Name)
	}
	role := "?"
	if p, _, err := readProperties(lv.Tags); err == nil {
		role = p[tagRole]
	}
	return fmt.Sprintf("if that is intended, make it trash with lvchange --deltag %s --addtag %s %s/%s; it is wiped when no device uses it",
		Tag(tagRole, role), Tag(tagRole, roleTrash), v.VG.Name, lv.Name)
}

// SnapshotSegment returns the segment that makes lv the hidden logical volume of one of
// LVM2's snapshots; nil if lv is none.
func SnapshotSegment(lv *lvm2.LV) *lvm2.SnapshotSegment {
	if len(lv.Segments) == 1 {
		return lv.Segments[0].Snapshot
	}
	return nil
}

// VolumeByLV finds a volume by the name of its logical volume.
func (v *View) VolumeByLV(name string) *Volume {
	if lv := v.VG.LV(name); lv != nil {
		return v.Volumes.Get(lv.ID)
	}
	return nil
}

// SnapshotByLV finds a named layer by the name of its logical volume.
func (v *View) SnapshotByLV(name string) *Layer {
	if lv := v.VG.LV(name); lv != nil {
		if l := v.Layers.Get(lv.ID); l != nil && l.Named {
			return l
		}
	}
	return nil
}

// Missing returns an error if the physical volume is missing.
func (v *View) Missing(pv *lvm2.PV) error {
	switch {
	case !pv.Missing():
		return nil
	case pv.Device != "":
		return fmt.Errorf("%w: physical volume %s of volume group %s is on %s again, but lvm2 changed the group without it; vgextend --restoremissing %[3]s %[4]s adds it back if its content is right, vgreduce --removemissing %[3]s abandons it",
			ErrUnavailable, pv.ID, v.VG.Name, pv.Device)
	case pv.Part() != nil:
		return fmt.Errorf("%w: physical volume %s of volume group %s: %s", ErrUnavailable, pv.ID, v.VG.Name, WholeMissing(pv))
	}
	return fmt.Errorf("%w: physical volume %s of volume group %s is missing; attach its disk, or abandon it with vgreduce --removemissing %[3]s", ErrUnavailable, pv.ID, v.VG.Name)
}

// WholeMissing describes a physical volume of which only a part is present, and what to do.
func WholeMissing(pv *lvm2.PV) string {
	return fmt.Sprintf("its disk is there, but the map or other device that is made of it is missing or cannot be read: %v; bring it back", pv.Part())
}

// Writable returns an error if no change can be committed, because a physical volume is
// missing. It is called before anything is done for a change.
func (v *View) Writable() error {
	for _, pv := range v.VG.PVs {
		if err := v.Missing(pv); err != nil {
			return err
		}
	}
	return nil
}

// ExtentSize returns the group's extent size.
func (v *View) ExtentSize() size.Bytes { return v.VG.ExtentSize.Bytes() }

// Extents returns the number of extents for b bytes, rounded up.
func (v *View) Extents(b size.Bytes) lvm2.Extents {
	return lvm2.Extents(b.RoundUp(v.ExtentSize()) / v.ExtentSize())
}

// Taken returns the size of the extents of lv in bytes.
func (v *View) Taken(lv *lvm2.LV) size.Bytes {
	if takesNothing(lv) {
		return 0
	}
	return v.BytesOf(lv)
}

// BytesOf returns the size of lv in bytes.
func (v *View) BytesOf(lv *lvm2.LV) size.Bytes { return size.Bytes(lv.Size()) * v.ExtentSize() }
