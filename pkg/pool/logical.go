package pool

import (
	"slices"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// handsOff are the flags of LVs that LVM2 must not activate: frozen layers,
// forks, readers, trash.
var handsOff = []string{lvm2.FlagActivationSkip, lvm2.FlagNoAutoActivate}

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

// setUnknown records the logical extents of lv that may hold an earlier owner's
// bytes. Too many pieces are joined to fewer: none of them was ever used, so
// wiping what is between is only more work.
func setUnknown(lv *lvm2.LV, unknown rangeSet) {
	lv.Tags = dropTags(lv.Tags, tagUnknown)
	for len(unknown.String()) > maxUnknownTag {
		unknown = unknown.coarser()
	}
	if len(unknown) > 0 {
		lv.Tags = append(lv.Tags, tag(tagUnknown, unknown.String()))
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
	c.Flags = slices.Clone(handsOff)
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
