package pool

import (
	"errors"
	"slices"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// handsOff are the flags of LVs that LVM2 must not activate: those that handOff
// makes so, and trash.
var handsOff = []string{lvm2.FlagActivationSkip, lvm2.FlagNoAutoActivate}

// handOff has LVM2 neither activate nor change lv. Frozen layers and flat stores, forks with their
// stores and live layers, readers and hidden volumes are such: to LVM2 they look like plain logical volumes,
// and what it made of their devices would lose data. Trash may be removed.
func handOff(lv *lvm2.LV) {
	lv.Flags = slices.Clone(handsOff)
	if !slices.Contains(lv.Status, lvm2.StatusLocked) {
		lv.Status = append(slices.Clone(lv.Status), lvm2.StatusLocked)
	}
}

// handBack makes lv one that LVM2 may deal with as with any other.
func handBack(lv *lvm2.LV) {
	lv.Flags = nil
	lv.Status = slices.DeleteFunc(slices.Clone(lv.Status), func(s string) bool { return s == lvm2.StatusLocked })
}

// untouchable says whether LVM2 neither activates nor changes lv.
func untouchable(lv *lvm2.LV) bool {
	return inactive(lv) && slices.Contains(lv.Status, lvm2.StatusLocked)
}

// inactive says whether LVM2 does not activate lv.
func inactive(lv *lvm2.LV) bool {
	return !slices.ContainsFunc(handsOff, func(flag string) bool { return !slices.Contains(lv.Flags, flag) })
}

// apart says whether o is more than LVM2 takes its logical volume for.
func (v *volume) apart() bool { return v.deleted || v.from() != "" || v.copying != nil }

// protect hands off what an older version, or somebody's lvchange, has left open.
// What LVM2 moves has its turn when that is over.
func (t *edit) protect() error {
	var open []*lvm2.LV
	for _, o := range t.volumes {
		if o.apart() {
			open = append(open, o.lv)
		}
		if o.fork != nil {
			open = append(open, o.fork.lv)
		}
		for _, f := range o.flats {
			open = append(open, f.lv)
		}
		for _, l := range o.layers {
			if l.snap == nil || o.forked() {
				open = append(open, l.lv)
			}
		}
	}
	for _, lv := range open {
		if now := t.vg.LVByID(lv.ID); now != lv || untouchable(lv) { // else this edit has made something else of it
			continue
		}
		c := lv.Clone()
		handOff(c)
		if err := t.put(c); err != nil && !errors.Is(err, ErrPrecondition) {
			return err
		}
	}
	return nil
}

// newLV describes a logical volume of ours without extents. Trash and layers
// get the name, status and flags of their kind.
func newLV(name, role string, tags ...string) *lvm2.LV {
	lv := &lvm2.LV{
		Name: name, ID: lvm2.NewID(), Tags: append([]string{tag(tagRole, role)}, tags...), CreationTime: time.Now(),
		Status: []string{lvm2.StatusRead, lvm2.StatusWrite, lvm2.StatusVisible},
	}
	if role == roleTrash {
		lv.Name = trashName(lv.ID)
		lv.Flags = slices.Clone(handsOff)
	}
	if role == roleLayer { // hidden behind the snapshot that it makes
		lv.Status = []string{lvm2.StatusRead, lvm2.StatusWrite}
	}
	return lv
}

// join makes a layer the snapshot of its volume for LVM2: the live one. length
// is what the volume had at the cut.
func (t *edit) join(o *volume, lv *lvm2.LV, length size.Bytes, chunk size.Sectors) error {
	return t.put(&lvm2.LV{
		Name: t.hiddenName(), ID: lvm2.NewID(), Status: []string{lvm2.StatusRead, lvm2.StatusWrite, lvm2.StatusVisible},
		CreationTime: lv.CreationTime, CreationHost: lv.CreationHost,
		Segments: []lvm2.Segment{{
			Count: t.extents(length), Type: lvm2.TypeSnapshot,
			Snapshot: &lvm2.SnapshotSegment{ChunkSize: chunk, Origin: o.lv.Name, COWStore: lv.Name},
		}},
	})
}

func trashName(id lvm2.ID) string { return trashPrefix + string(id) }

// maxUnknownTag is the length of a set of extents in a tag, in bytes. LVM2
// takes tags of 1024.
const maxUnknownTag = 900

// headTaken begins the value of tagUnknown. Older builds wrote none, and did not
// take the first extents off when they zeroed the first MiB of a volume.
const headTaken = "/"

func unknownText(unknown rangeSet) string { return headTaken + unknown.String() }

// setUnknown records the logical extents of lv that may hold an earlier owner's
// bytes. Too many pieces are joined to fewer: none of them was ever used, so
// wiping what is between is only more work.
func setUnknown(lv *lvm2.LV, unknown rangeSet) {
	lv.Tags = dropTags(lv.Tags, tagUnknown)
	for len(unknown.String()) > maxUnknownTag {
		unknown = unknown.coarser()
	}
	if len(unknown) > 0 {
		lv.Tags = append(lv.Tags, tag(tagUnknown, unknownText(unknown)))
	}
}

// setContent records on lv what its content is: whether there has been a file
// system, and which extents may hold an earlier owner's bytes. Layers get it at
// their cut, copies from the layer.
func setContent(lv *lvm2.LV, formatted bool, unknown rangeSet) {
	if lv.Tags = dropTags(lv.Tags, tagUnformatted); !formatted {
		lv.Tags = append(lv.Tags, tag(tagUnformatted))
	}
	setUnknown(lv, unknown)
}

// deleteVolume makes o trash, or hides it while a snapshot needs its blocks.
func (t *edit) deleteVolume(o *volume) error {
	if t.disposable(o) {
		if err := t.discard(storesOf(o.layers)...); err != nil {
			return err
		}
		return t.discardBlocks(o)
	}
	c := o.lv.Clone()
	c.Tags = append(dropTags(c.Tags, tagName), tag(tagDeleted))
	handOff(c)
	return t.put(c)
}

// discardBlocks makes the extents of a volume without layers trash, and frees
// what a fork or reader read through.
func (t *edit) discardBlocks(o *volume) error {
	lvs := []*lvm2.LV{o.lv}
	if takesNothing(o.lv) {
		lvs = nil
		if err := t.remove(o.lv.ID); err != nil {
			return err
		}
	}
	if o.fork != nil {
		lvs = append(lvs, o.fork.lv)
	}
	if err := t.discard(lvs...); err != nil {
		return err
	}
	return t.prune(t.layers[o.from()])
}

func storesOf(layers []*layer) []*lvm2.LV {
	out := make([]*lvm2.LV, len(layers))
	for i, l := range layers {
		out[i] = l.lv
	}
	return out
}

// discard turns LVs into trash: their extents stay allocated until they are wiped.
func (t *edit) discard(lvs ...*lvm2.LV) error {
	for _, lv := range lvs {
		if l := t.layers[lv.ID]; l != nil && l.snap != nil && t.vg.LVByID(l.snap.ID) != nil {
			if err := t.remove(l.snap.ID); err != nil {
				return err
			}
		}
		for _, f := range t.flats[lv.ID] {
			if now := t.vg.LVByID(f.lv.ID); now != nil && now.Name != trashName(now.ID) {
				if err := t.discard(now); err != nil {
					return err
				}
			}
		}
		c := lv.Clone()
		c.Name = trashName(lv.ID)
		c.Tags = []string{tag(tagRole, roleTrash)}
		c.Status = []string{lvm2.StatusRead, lvm2.StatusWrite, lvm2.StatusVisible}
		c.Flags = slices.Clone(handsOff)
		if err := t.put(c); err != nil {
			return err
		}
	}
	return nil
}

// prune throws away the layers of l's history that nobody needs any more now
// that one user of l is gone, and the volume too if it was deleted.
func (t *edit) prune(l *layer) error {
	if l == nil {
		return nil
	}
	now := newView(t.vg, t.view)
	o := now.volumes[l.of]
	if o == nil {
		return nil
	}
	unneeded := now.unneeded(o)
	if err := t.discard(storesOf(unneeded)...); err != nil {
		return err
	}
	if len(unneeded) == len(o.layers) && o.deleted && now.disposable(o) {
		return t.discardBlocks(o)
	}
	return nil
}
