package pool

import (
	"errors"
	"slices"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// handsOff are the flags of logical volumes that LVM2 must not activate: trash, and those
// changed by handOff.
var handsOff = []string{lvm2.FlagActivationSkip, lvm2.FlagNoAutoActivate}

// handOff marks lv so that LVM2 neither activates nor changes it. It is for frozen layers,
// flat stores, readers, hidden volumes, and forks with their stores and live layers. LVM2
// takes them for plain logical volumes, and its devices for them would lose data. LVM2 may
// still remove trash.
func handOff(lv *lvm2.LV) {
	lv.Flags = slices.Clone(handsOff)
	if !slices.Contains(lv.Status, lvm2.StatusLocked) {
		lv.Status = append(slices.Clone(lv.Status), lvm2.StatusLocked)
	}
}

// handBack lets LVM2 treat lv like any other logical volume.
func handBack(lv *lvm2.LV) {
	lv.Flags = nil
	lv.Status = slices.DeleteFunc(slices.Clone(lv.Status), func(s string) bool { return s == lvm2.StatusLocked })
}

// untouchable reports whether LVM2 neither activates nor changes lv.
func untouchable(lv *lvm2.LV) bool {
	return inactive(lv) && slices.Contains(lv.Status, lvm2.StatusLocked)
}

// inactive reports whether LVM2 does not activate lv.
func inactive(lv *lvm2.LV) bool {
	return !slices.ContainsFunc(handsOff, func(flag string) bool { return !slices.Contains(lv.Flags, flag) })
}

// apart reports whether v is not the plain volume that LVM2 takes it for.
func (v *volume) apart() bool { return v.deleted || v.from() != "" || v.copying != nil }

// protect applies handOff to logical volumes that need it but lack it, because of an older
// release or an lvchange. A logical volume that LVM2 moves is protected after the move.
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
		if now := t.vg.LVByID(lv.ID); now != lv || untouchable(lv) { // skip it if this edit has already changed it
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

// newLV returns a new logical volume without extents. Trash and layers get the name, status
// and flags of their role.
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

// join makes lv the live layer of o: it adds the hidden logical volume that makes lv a
// snapshot of o for LVM2. length is the size of the volume at the cut.
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

// maxUnknownTag is the largest text of a set of extents in a tag, in bytes. LVM2 allows tags
// of 1024 bytes.
const maxUnknownTag = 900

// headTaken begins the value of tagUnknown. Older releases did not write it, and did not
// remove the first extents from the set when they zeroed the first MiB of a volume.
const headTaken = "/"

func unknownText(unknown rangeSet) string { return headTaken + unknown.String() }

// setUnknown records the extents of lv that may hold an earlier owner's bytes. If the set has
// too many pieces for a tag, setUnknown joins pieces. The extents in between were never used
// either, so wiping them is only more work.
func setUnknown(lv *lvm2.LV, unknown rangeSet) {
	lv.Tags = dropTags(lv.Tags, tagUnknown)
	for len(unknown.String()) > maxUnknownTag {
		unknown = unknown.coarser()
	}
	if len(unknown) > 0 {
		lv.Tags = append(lv.Tags, tag(tagUnknown, unknownText(unknown)))
	}
}

// setContent records on lv whether it has had a file system, and which extents may hold an
// earlier owner's bytes. A layer gets the record at its cut, and a copy gets the layer's.
func setContent(lv *lvm2.LV, formatted bool, unknown rangeSet) {
	if lv.Tags = dropTags(lv.Tags, tagUnformatted); !formatted {
		lv.Tags = append(lv.Tags, tag(tagUnformatted))
	}
	setUnknown(lv, unknown)
}

// deleteVolume turns o into trash, or hides o while a snapshot needs its blocks.
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

// discardBlocks turns the extents of a volume without layers into trash, and prunes the layer
// that the volume read through.
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

// discard turns logical volumes into trash. Their extents stay allocated until the wiper has
// wiped them.
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

// prune deletes the layers of l's history that nobody needs any more, after a user of l is
// gone. It also deletes the blocks of a deleted volume once nothing needs them.
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
