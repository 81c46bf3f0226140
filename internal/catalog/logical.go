package catalog

import (
	"errors"
	"slices"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// handsOff are the flags of logical volumes that LVM2 must not activate: trash, and those
// changed by HandOff.
var handsOff = []string{lvm2.FlagActivationSkip, lvm2.FlagNoAutoActivate}

// HandOff marks lv so that LVM2 neither activates nor changes it. It is for frozen layers,
// flat stores, readers, hidden volumes, and forks with their stores and live layers. LVM2
// takes them for plain logical volumes, and its devices for them would lose data. LVM2 may
// still remove trash.
func HandOff(lv *lvm2.LV) {
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

// Untouchable reports whether LVM2 neither activates nor changes lv.
func Untouchable(lv *lvm2.LV) bool {
	return inactive(lv) && slices.Contains(lv.Status, lvm2.StatusLocked)
}

// inactive reports whether LVM2 does not activate lv.
func inactive(lv *lvm2.LV) bool {
	return !slices.ContainsFunc(handsOff, func(flag string) bool { return !slices.Contains(lv.Flags, flag) })
}

// apart reports whether v is not the plain volume that LVM2 takes it for.
func (v *Volume) apart() bool { return v.Deleted || v.From() != "" || v.Copying != nil }

// Protect applies HandOff to logical volumes that need it but lack it, because of an older
// release or an lvchange. A logical volume that LVM2 moves is protected after the move.
func (t *Edit) Protect() error {
	var open []*lvm2.LV
	for _, o := range t.Volumes.All() {
		if o.apart() {
			open = append(open, o.LV)
		}
		if o.Fork != nil {
			open = append(open, o.Fork.LV)
		}
		for _, f := range o.Flats {
			open = append(open, f.LV)
		}
		for _, l := range o.Layers {
			if l.Snap == nil || o.Forked() {
				open = append(open, l.LV)
			}
		}
	}
	for _, lv := range open {
		if now := t.VG.LVByID(lv.ID); now != lv || Untouchable(lv) { // skip it if this edit has already changed it
			continue
		}
		c := lv.Clone()
		HandOff(c)
		if err := t.Put(c); err != nil && !errors.Is(err, ErrPrecondition) {
			return err
		}
	}
	return nil
}

// NewLV returns a new logical volume without extents. Trash and layers get the name, status
// and flags of their role.
func NewLV(name, role string, tags ...string) *lvm2.LV {
	lv := &lvm2.LV{
		Name: name, ID: lvm2.NewID(), Tags: append([]string{Tag(tagRole, role)}, tags...), CreationTime: time.Now(),
		Status: []string{lvm2.StatusRead, lvm2.StatusWrite, lvm2.StatusVisible},
	}
	if role == roleTrash {
		lv.Name = TrashName(lv.ID)
		lv.Flags = slices.Clone(handsOff)
	}
	if role == roleLayer { // hidden behind the snapshot that it makes
		lv.Status = []string{lvm2.StatusRead, lvm2.StatusWrite}
	}
	return lv
}

// Join makes lv the live layer of o: it adds the hidden logical volume that makes lv a
// snapshot of o for LVM2. length is the size of the volume at the cut.
func (t *Edit) Join(o *Volume, lv *lvm2.LV, length size.Bytes, chunk size.Sectors) error {
	return t.Put(&lvm2.LV{
		Name: t.hiddenName(), ID: lvm2.NewID(), Status: []string{lvm2.StatusRead, lvm2.StatusWrite, lvm2.StatusVisible},
		CreationTime: lv.CreationTime, CreationHost: lv.CreationHost,
		Segments: []lvm2.Segment{{
			Count: t.Extents(length), Type: lvm2.TypeSnapshot,
			Snapshot: &lvm2.SnapshotSegment{ChunkSize: chunk, Origin: o.LV.Name, COWStore: lv.Name},
		}},
	})
}

// TrashName returns the name of a piece of trash.
func TrashName(id lvm2.ID) string { return trashPrefix + string(id) }

// maxUnknownTag is the largest text of a set of extents in a tag, in bytes. LVM2 allows tags
// of 1024 bytes.
const maxUnknownTag = 900

// headTaken begins the value of tagUnknown. Older releases did not write it, and did not
// remove the first extents from the set when they zeroed the first MiB of a volume.
const headTaken = "/"

func unknownText(unknown RangeSet) string { return headTaken + unknown.String() }

// SetUnknown records the extents of lv that may hold an earlier owner's bytes. If the set has
// too many pieces for a tag, SetUnknown joins pieces. The extents in between were never used
// either, so wiping them is only more work.
func SetUnknown(lv *lvm2.LV, unknown RangeSet) {
	lv.Tags = DropTags(lv.Tags, tagUnknown)
	for len(unknown.String()) > maxUnknownTag {
		unknown = unknown.coarser()
	}
	if len(unknown) > 0 {
		lv.Tags = append(lv.Tags, Tag(tagUnknown, unknownText(unknown)))
	}
}

// SetContent records on lv whether it has had a file system, and which extents may hold an
// earlier owner's bytes. A layer gets the record at its cut, and a copy gets the layer's.
func SetContent(lv *lvm2.LV, formatted bool, unknown RangeSet) {
	if lv.Tags = DropTags(lv.Tags, tagUnformatted); !formatted {
		lv.Tags = append(lv.Tags, Tag(tagUnformatted))
	}
	SetUnknown(lv, unknown)
}

// DeleteVolume turns o into trash, or hides o while a snapshot needs its blocks.
func (t *Edit) DeleteVolume(o *Volume) error {
	if t.Disposable(o) {
		if err := t.Discard(storesOf(o.Layers)...); err != nil {
			return err
		}
		return t.discardBlocks(o)
	}
	c := o.LV.Clone()
	c.Tags = append(DropTags(c.Tags, tagName), Tag(tagDeleted))
	HandOff(c)
	return t.Put(c)
}

// discardBlocks turns the extents of a volume without layers into trash, and prunes the layer
// that the volume read through.
func (t *Edit) discardBlocks(o *Volume) error {
	lvs := []*lvm2.LV{o.LV}
	if takesNothing(o.LV) {
		lvs = nil
		if err := t.Remove(o.LV.ID); err != nil {
			return err
		}
	}
	if o.Fork != nil {
		lvs = append(lvs, o.Fork.LV)
	}
	if err := t.Discard(lvs...); err != nil {
		return err
	}
	return t.Prune(t.Layers.Get(o.From()))
}

func storesOf(layers []*Layer) []*lvm2.LV {
	out := make([]*lvm2.LV, len(layers))
	for i, l := range layers {
		out[i] = l.LV
	}
	return out
}

// Discard turns logical volumes into trash. Their extents stay allocated until the wiper has
// wiped them.
func (t *Edit) Discard(lvs ...*lvm2.LV) error {
	for _, lv := range lvs {
		if l := t.Layers.Get(lv.ID); l != nil && l.Snap != nil && t.VG.LVByID(l.Snap.ID) != nil {
			if err := t.Remove(l.Snap.ID); err != nil {
				return err
			}
		}
		for _, f := range t.Flats.Get(lv.ID) {
			if now := t.VG.LVByID(f.LV.ID); now != nil && now.Name != TrashName(now.ID) {
				if err := t.Discard(now); err != nil {
					return err
				}
			}
		}
		c := lv.Clone()
		c.Name = TrashName(lv.ID)
		c.Tags = []string{Tag(tagRole, roleTrash)}
		c.Status = []string{lvm2.StatusRead, lvm2.StatusWrite, lvm2.StatusVisible}
		c.Flags = slices.Clone(handsOff)
		if err := t.Put(c); err != nil {
			return err
		}
	}
	return nil
}

// Prune deletes the layers of l's history that nobody needs any more, after a user of l is
// gone. It also deletes the blocks of a deleted volume once nothing needs them.
func (t *Edit) Prune(l *Layer) error {
	if l == nil {
		return nil
	}
	now := NewView(t.VG, t.View)
	o := now.Volumes.Get(l.Of)
	if o == nil {
		return nil
	}
	unneeded := now.unneeded(o)
	if err := t.Discard(storesOf(unneeded)...); err != nil {
		return err
	}
	if len(unneeded) == len(o.Layers) && o.Deleted && now.Disposable(o) {
		return t.discardBlocks(o)
	}
	return nil
}
