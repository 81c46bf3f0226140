package pool

import (
	"fmt"
	"slices"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// volume is a logical volume of role volume with its history.
type volume struct {
	lv         *lvm2.LV
	name       string
	mode       Mode
	fs         string
	formatted  bool
	readOnly   bool
	shared     bool
	raw        bool       // it was a block device until its mode changed
	asked      size.Bytes // size in the request; 0 if it is the actual size
	source     Source
	sourcePool string       // pool of source; "" for this pool
	copyOf     lvm2.ID      // the layer that a fork reads through; "" once the volume is hydrated
	hydrated   hydrated     // the parts of a fork that are in the volume's own extents
	fork       *fork        // the store for writes to a fork
	reads      lvm2.ID      // the layer that a reader shows
	transient  bool         // a writable reader; its writes last as long as its device
	chunk      size.Sectors // chunk size of a transient volume's store
	begun      bool         // a transient volume was activated
	reset      bool         // a transient volume lost its writes, and was activated again
	unknown    rangeSet     // extents of the volume that may hold an earlier owner's bytes
	headKept   bool         // an older release recorded unknown; see zeroedHead
	deleted    bool
	copying    *copyState // the copy from another pool that is not complete yet; nil if there is none
	lentTo     string     // POOL/NAME of the volume into which another pool copies this one
	former     string     // name of the logical volume that this was before a rollback; "" if there was none
	layers     []*layer   // oldest first
	flats      []*flat    // flat stores of the history
	foreignCow bool       // has snapshots that LVM2 made
	merging    bool       // lvm2 merges a snapshot into it, or will at the next activation
	odd        error      // set if a tag of the volume or of its history is not understood
}

// layer is a COW store: a logical volume of role layer.
type layer struct {
	lv       *lvm2.LV
	of       lvm2.ID
	name     string // CSI name of the snapshot, if named
	named    bool
	order    uint64 // place in the history
	over     uint64 // place of the layer that it reads through, if not the next one
	through  uint64 // place of the last layer that was folded into it, or its own place
	created  time.Time
	length   size.Sectors // of the volume at the cut
	asked    size.Bytes   // size in the request for the volume; 0 if it is length
	chunk    size.Sectors
	lost     bool
	used     size.Sectors // used part of a trimmed store
	trimmed  bool         // the unused end of the store was freed
	exact    bool         // the store's chunks below bound are exactly the chunks that changed until the next cut
	bound    size.Sectors // 0 if exact holds for the whole store
	superset bool         // the store has more chunks than changed until the next cut
	unknown  rangeSet     // the volume's unknown extents at the cut
	headKept bool         // an older release recorded unknown; see zeroedHead
	blank    bool         // the volume had no file system yet at the cut
	snap     *lvm2.LV     // the hidden logical volume with the snapshot segment; only the live layer has one
	odd      error        // set if a tag is not understood
}

// sourceHere returns the name of the logical volume of this group that v was made from; ""
// if there is none.
func (v *volume) sourceHere() string {
	if v.sourcePool != "" {
		return ""
	}
	return v.source.LV
}

// theirs explains why the driver leaves the volume as it is: LVM2 is working on it, or its
// tags are not understood. It returns "" for a volume that the driver may change.
func (v *volume) theirs() string {
	switch {
	case v.odd != nil:
		return fmt.Sprintf("its tags are not understood (%v)", v.odd)
	case v.merging:
		return "lvm2 is merging a snapshot into it"
	case v.foreignCow:
		return "it has snapshots that LVM2 made"
	case v.reading() && !v.transient:
		if !takesNothing(v.lv) {
			return "it shows a snapshot, but has extents of its own"
		}
	case !linear(v.lv):
		return "it is not linear, as during a pvmove"
	}
	return ""
}

// view is the decoded form of one generation of the group's metadata. It does not change
// once it is published, so it may be used concurrently.
type view struct {
	vg        *lvm2.VG
	volumes   map[lvm2.ID]*volume
	layers    map[lvm2.ID]*layer
	forks     map[lvm2.ID]*fork   // by the id of the store
	flats     map[lvm2.ID][]*flat // by the layer that is read through them
	flattened map[lvm2.ID]bool    // layers that are part of a flat store
	named     map[string]*volume  // by CSI name, without deleted volumes
	snapshots map[string]*layer   // by CSI name
	trash     []*lvm2.LV
	strange   []string          // messages about logical volumes whose tags make no sense
	unclear   error             // the first tag that is not understood; while it is set, nothing is deleted, because the tag may name any logical volume
	free      rangeSet          // extents that can be allocated
	clean     rangeSet          // free extents that hold zeroes
	decoded   map[*lvm2.LV]any  // decoded form of each logical volume: *volume, *layer, *fork, *flat, trashed, foreign or error
	pinned    map[lvm2.ID]bool  // layers that forks and readers read through
	sources   map[string]bool   // names of logical volumes that other volumes name as their source, or as the volume of their snapshots
	doubtful  map[lvm2.ID]error // volumes whose history has a tag that is not understood
	lease     *lease            // of the act that got the view; nil outside of acts
}

type (
	trashed struct{}
	foreign struct {
		static bool // its tag allows a static volume to name it
	}
)

// newView decodes vg. It takes over logical volumes that prev has decoded already.
func newView(vg *lvm2.VG, prev *view) *view {
	n := len(vg.LVs)
	v := &view{
		vg: vg, volumes: make(map[lvm2.ID]*volume, n), layers: map[lvm2.ID]*layer{}, forks: map[lvm2.ID]*fork{},
		flats: map[lvm2.ID][]*flat{}, flattened: map[lvm2.ID]bool{},
		named: make(map[string]*volume, n), snapshots: map[string]*layer{},
		decoded: make(map[*lvm2.LV]any, n), pinned: map[lvm2.ID]bool{}, sources: map[string]bool{},
		doubtful: map[lvm2.ID]error{},
	}
	var hidden []*lvm2.LV
	byName := map[string]*layer{}
	var stores []*fork
	var flats []*flat
	for _, lv := range vg.LVs {
		if s := snapshotSegment(lv); s != nil {
			hidden = append(hidden, lv)
		}
		d, known := any(nil), false
		if prev != nil {
			d, known = prev.decoded[lv]
		}
		if !known {
			d = decode(lv)
		}
		v.decoded[lv] = d
		v.add(lv, d, byName)
		switch d := d.(type) {
		case *fork:
			stores = append(stores, d)
		case *flat:
			flats = append(flats, d)
		}
	}
	v.link(hidden, byName)
	v.linkFlats(flats)
	v.linkForks(stores)
	v.free = newRangeSet(vg.Free()...)
	v.clean = readClean(vg).intersect(v.free)
	return v
}

// add adds a decoded logical volume to the view, and a layer also to byName.
func (v *view) add(lv *lvm2.LV, decoded any, byName map[string]*layer) {
	switch d := decoded.(type) {
	case *volume:
		c := *d // a view owns its links
		v.volumes[lv.ID] = &c
		v.misread(lv, c.odd)
		if !c.deleted {
			v.named[c.name] = &c
		}
		if from := c.from(); from != "" {
			v.pinned[from] = true
		}
		for _, known := range []string{c.sourceHere(), c.former} {
			if known != "" {
				v.sources[known] = true
			}
		}
	case *layer:
		c := *d
		v.layers[lv.ID] = &c
		v.misread(lv, c.odd)
		byName[lv.Name] = &c
		if c.named {
			v.snapshots[c.name] = &c
		}
	case *fork:
		v.misread(lv, d.odd)
	case *flat:
		v.misread(lv, d.odd)
	case trashed:
		v.trash = append(v.trash, lv)
	case error:
		v.misread(lv, d)
	}
}

// linkForks links the stores of forks and readers to their volumes.
func (v *view) linkForks(stores []*fork) {
	for _, s := range stores {
		switch o := v.volumes[s.of]; {
		case o != nil && o.forked():
			o.fork = s
			v.forks[s.lv.ID] = s
		case o != nil && o.reading() && !o.transient:
			o.fork = s
		default:
			v.strange = append(v.strange, fmt.Sprintf("store %s/%s of a fork: its volume %s is not a fork; %s", v.vg.Name, s.lv.Name, s.of, v.giveUp(s.lv, s.of)))
		}
	}
}

// misread records a logical volume with a tag that is not understood. Every id in its other
// tags still counts, so that nothing the logical volume may need is deleted.
func (v *view) misread(lv *lvm2.LV, why error) {
	if why == nil {
		return
	}
	why = fmt.Errorf("logical volume %s/%s: %w", v.vg.Name, lv.Name, why)
	v.strange = append(v.strange, why.Error())
	if v.unclear == nil {
		v.unclear = why
	}
	for _, id := range idsIn(lv.Tags, tagCopy, tagReads) {
		v.pinned[id] = true
	}
	for _, id := range idsIn(lv.Tags, tagOf) {
		v.doubtful[id] = why
	}
}

// giveUp tells the user how to delete a store whose volume is gone. After lvremove its
// extents could get another owner while a device still maps them.
func (v *view) giveUp(lv *lvm2.LV, of lvm2.ID) string {
	if left := v.vg.LVByID(of); left != nil {
		return fmt.Sprintf("correct the tags of %s/%s", v.vg.Name, left.Name)
	}
	role := "?"
	if p, _, err := readProperties(lv.Tags); err == nil {
		role = p[tagRole]
	}
	return fmt.Sprintf("if that is intended, make it trash with lvchange --deltag %s --addtag %s %s/%s; it is wiped when no device uses it",
		tag(tagRole, role), tag(tagRole, roleTrash), v.vg.Name, lv.Name)
}

// link links layers to their volumes.
func (v *view) link(hidden []*lvm2.LV, byName map[string]*layer) {
	for _, h := range hidden {
		s := snapshotSegment(h)
		var o *volume
		if origin := v.vg.LV(s.Origin); origin != nil {
			o = v.volumes[origin.ID]
		}
		if o != nil && s.Merging {
			o.merging = true
		}
		if l := byName[s.COWStore]; l != nil {
			l.snap = h
		} else if o != nil {
			o.foreignCow = true
		}
	}
	for id, l := range v.layers {
		o := v.volumes[l.of]
		if o == nil {
			v.strange = append(v.strange, fmt.Sprintf("layer %s/%s: its volume %s is not in the group; %s", v.vg.Name, l.lv.Name, l.of, v.giveUp(l.lv, l.of)))
			delete(v.layers, id)
			if l.named {
				delete(v.snapshots, l.name)
			}
			continue
		}
		o.layers = append(o.layers, l)
		l.blank = l.blank || !o.formatted // older releases did not record it on layers
		if l.headKept && !l.blank {
			l.unknown = v.zeroedHead(o, l.unknown)
		}
	}
	for id, o := range v.volumes {
		if o.headKept {
			o.unknown = v.zeroedHead(o, o.unknown)
		}
		if l := v.layers[o.reads]; l != nil && !o.transient { // a read-only reader has only the layer's content
			o.formatted, o.unknown = !l.blank, l.unknown
		}
		slices.SortFunc(o.layers, func(a, b *layer) int { return int(int64(a.order) - int64(b.order)) })
		if why := v.doubtful[id]; o.odd == nil && why != nil {
			o.odd = why
		}
		if o.odd == nil { // otherwise its history is not known
			o.findLoss()
		}
	}
}

func snapshotSegment(lv *lvm2.LV) *lvm2.SnapshotSegment {
	if len(lv.Segments) == 1 {
		return lv.Segments[0].Snapshot
	}
	return nil
}

// volumeByLV finds a volume by the name of its logical volume.
func (v *view) volumeByLV(name string) *volume {
	if lv := v.vg.LV(name); lv != nil {
		return v.volumes[lv.ID]
	}
	return nil
}

// snapshotByLV finds a named layer by the name of its logical volume.
func (v *view) snapshotByLV(name string) *layer {
	if lv := v.vg.LV(name); lv != nil {
		if l := v.layers[lv.ID]; l != nil && l.named {
			return l
		}
	}
	return nil
}

// missing returns an error if the physical volume is missing.
func (v *view) missing(pv *lvm2.PV) error {
	switch {
	case !pv.Missing():
		return nil
	case pv.Device != "":
		return fmt.Errorf("%w: physical volume %s of volume group %s is on %s again, but lvm2 changed the group without it; vgextend --restoremissing %[3]s %[4]s adds it back if its content is right, vgreduce --removemissing %[3]s abandons it",
			ErrUnavailable, pv.ID, v.vg.Name, pv.Device)
	case pv.Part() != nil:
		return fmt.Errorf("%w: physical volume %s of volume group %s: %s", ErrUnavailable, pv.ID, v.vg.Name, wholeMissing(pv))
	}
	return fmt.Errorf("%w: physical volume %s of volume group %s is missing; attach its disk, or abandon it with vgreduce --removemissing %[3]s", ErrUnavailable, pv.ID, v.vg.Name)
}

// wholeMissing describes a physical volume of which only a part is present, and what to do.
func wholeMissing(pv *lvm2.PV) string {
	return fmt.Sprintf("its disk is there, but the map or other device that is made of it is missing or cannot be read: %v; bring it back", pv.Part())
}

// writable returns an error if no change can be committed, because a physical volume is
// missing.
func (v *view) writable() error {
	for _, pv := range v.vg.PVs {
		if err := v.missing(pv); err != nil {
			return err
		}
	}
	return nil
}

// extent returns the group's extent size.
func (v *view) extent() size.Bytes { return v.vg.ExtentSize.Bytes() }

// extents returns the number of extents for b bytes, rounded up.
func (v *view) extents(b size.Bytes) lvm2.Extents {
	return lvm2.Extents(b.RoundUp(v.extent()) / v.extent())
}

// taken returns the size of the extents of lv in bytes.
func (v *view) taken(lv *lvm2.LV) size.Bytes {
	if takesNothing(lv) {
		return 0
	}
	return v.bytesOf(lv)
}

// bytesOf returns the size of lv in bytes.
func (v *view) bytesOf(lv *lvm2.LV) size.Bytes { return size.Bytes(lv.Size()) * v.extent() }
