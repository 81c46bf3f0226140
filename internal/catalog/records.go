package catalog

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Each function in this file records one fact in the tags of a logical volume. No other
// package writes tags.

// retag replaces a logical volume with a copy that has other tags.
func (t *Edit) retag(lv *lvm2.LV, tags []string) error {
	c := lv.Clone()
	c.Tags = tags
	return t.Put(c)
}

// SetFormatted records that the volume may have content: a file system, or writes to its
// raw device. Such a volume is never formatted again.
func (t *Edit) SetFormatted(o *Volume) error {
	return t.retag(o.LV, DropTags(o.LV.Tags, tagUnformatted))
}

// SetMode records the mode of the volume. fsType is used for mode Filesystem only.
func (t *Edit) SetMode(o *Volume, mode Mode, fsType string) error {
	tags := SetTag(DropTags(o.LV.Tags, tagFS), tagMode, string(mode))
	if mode == Filesystem {
		tags = append(tags, Tag(tagFS, fsType))
		if o.Formatted {
			tags = SetTag(tags, tagRaw)
		}
	}
	return t.retag(o.LV, tags)
}

// Unname removes the CSI name of a snapshot, and discards the layers that nothing needs
// without it.
func (t *Edit) Unname(l *Layer) error {
	if err := t.retag(l.LV, DropTags(l.LV.Tags, tagName)); err != nil {
		return err
	}
	return t.Prune(l)
}

// SetBound records that the chunks below bound in the frozen store lv are exactly the
// chunks that changed until the next cut.
func (t *Edit) SetBound(lv *lvm2.LV, bound size.Sectors) error {
	return t.retag(lv, SetTag(lv.Tags, tagExact, number(bound)))
}

// SetUsed records the used size of a store.
func (t *Edit) SetUsed(lv *lvm2.LV, used size.Sectors) error {
	return t.retag(lv, SetTag(lv.Tags, tagUsed, number(used)))
}

// Collecting returns a copy of the layer's logical volume for a fold into the layer. It
// records that the store has more chunks than changed until the next cut.
func (l *Layer) Collecting() *lvm2.LV {
	c := l.LV.Clone()
	c.Tags = SetTag(DropTags(c.Tags, tagUsed, tagExact), tagSuperset)
	return c
}

// Folded records that heir has all chunks of gone, and discards gone.
func (t *Edit) Folded(heir, gone *Layer) error {
	tags := SetTag(DropTags(heir.LV.Tags, tagUsed), tagThrough, strconv.FormatUint(gone.Through, 10))
	if gone.over > 0 { // now heir reads through the layer that gone read through
		tags = SetTag(tags, tagOver, strconv.FormatUint(gone.over, 10))
	}
	if err := t.retag(heir.LV, tags); err != nil {
		return err
	}
	return t.Discard(gone.LV)
}

// SetHydrated records that a fork is copied except for missing. length is the length of
// the snapshot that the fork reads through.
func (t *Edit) SetHydrated(o *Volume, missing Spans, length size.Sectors) error {
	return t.retag(o.LV, SetTag(o.LV.Tags, tagHydrated, HydratedBut(missing, length).String()))
}

// SetBegun records that a transient volume was activated. lost is set if the volume lost
// its earlier writes.
func (t *Edit) SetBegun(o *Volume, lost bool) error {
	tags := SetTag(o.LV.Tags, tagBegun)
	if lost {
		tags = SetTag(tags, tagReset)
	}
	return t.retag(o.LV, tags)
}

// StartOver records that a transient volume lost its writes, and begins again with the
// content of the layer shows, which has no file system.
func (t *Edit) StartOver(o *Volume, shows *Layer) error {
	c := o.LV.Clone()
	c.Tags = SetTag(c.Tags, tagReset)
	SetContent(c, false, shows.unknown)
	return t.Put(c)
}

// ForgetReset records that the use in which a transient volume lost its writes has ended.
func (t *Edit) ForgetReset(o *Volume) error { return t.retag(o.LV, DropTags(o.LV.Tags, tagReset)) }

// SetWiped records that extents of a volume hold zeroes. A transient volume then counts as
// activated, because the zeroes are lost with its device.
func (t *Edit) SetWiped(o *Volume, extents RangeSet) error {
	c := o.LV.Clone()
	if o.Transient {
		c.Tags = SetTag(c.Tags, tagBegun)
	}
	SetUnknown(c, o.Unknown.Subtract(extents))
	return t.Put(c)
}

// SetCopying turns lv, which is new, into a volume that is not complete yet. state says how
// much of it is copied.
func SetCopying(lv *lvm2.LV, state CopyState) {
	lv.Tags = SetTag(lv.Tags, tagCopying, state.String())
	HandOff(lv)
}

// RecordCopied records how much of a volume is copied.
func (t *Edit) RecordCopied(o *Volume, state CopyState) error {
	return t.retag(o.LV, SetTag(o.LV.Tags, tagCopying, state.String()))
}

// CompleteCopy records that all of a volume is copied.
func (t *Edit) CompleteCopy(o *Volume) error {
	c := o.LV.Clone()
	c.Tags = DropTags(c.Tags, tagCopying)
	handBack(c)
	return t.Put(c)
}

// AllowedStatic returns a copy of a logical volume of LVM2's own with the tag that lets a
// static volume name it.
func AllowedStatic(lv *lvm2.LV) *lvm2.LV {
	c := lv.Clone()
	c.Tags = SetTag(c.Tags, tagStatic)
	return c
}

// StaticTag returns the tag that lets a static volume name a logical volume of LVM2's own.
func StaticTag() string { return Tag(tagStatic) }

// HasTags reports whether a logical volume has tags of csi-dmsnap.
func HasTags(lv *lvm2.LV) bool {
	for _, t := range lv.Tags {
		if strings.HasPrefix(t, tagPrefix) {
			return true
		}
	}
	return false
}

// AsVolume returns a copy of a logical volume of LVM2's own as a volume with the CSI name
// name.
func AsVolume(lv *lvm2.LV, name string, mode Mode, fsType string) *lvm2.LV {
	c := lv.Clone()
	c.Tags = append(DropTags(c.Tags, tagStatic), Tag(tagRole, roleVolume), Tag(tagName, name), Tag(tagMode, string(mode)))
	if mode == Filesystem {
		c.Tags = append(c.Tags, Tag(tagFS, fsType))
	}
	if ReadOnlyLV(c) {
		c.Tags = append(c.Tags, Tag(tagReadOnly))
	}
	return c
}

// Adopted describes the layer that the store of a snapshot of LVM2's becomes.
type Adopted struct {
	Order, Over uint64 // places in the history: its own, and the place of the layer that it reads through
	Length      size.Sectors
	Chunk       size.Sectors
	Lost        bool
}

// AsLayer turns the store of a snapshot of LVM2's into a frozen layer of o. The snapshot
// gets the name of the logical volume.
func (t *Edit) AsLayer(lv *lvm2.LV, o *Volume, a Adopted) error {
	c := lv.Clone()
	c.Status = []string{lvm2.StatusRead, lvm2.StatusVisible}
	HandOff(c)
	c.Tags = append(DropTags(c.Tags, tagStatic), Tag(tagRole, roleLayer), Tag(tagName, lv.Name), Tag(tagOf, string(o.LV.ID)),
		Tag(tagOrder, strconv.FormatUint(a.Order, 10)), Tag(tagOver, strconv.FormatUint(a.Over, 10)),
		Tag(tagCreated, strconv.FormatInt(lv.CreationTime.UnixNano(), 10)), Tag(tagLength, number(a.Length)), Tag(tagChunk, number(a.Chunk)),
		Tag(tagSuperset)) // the snapshot may have been written to, and its store has changes from after later snapshots
	if a.Lost {
		c.Tags = append(c.Tags, Tag(tagLost))
	}
	SetContent(c, o.Formatted, o.Unknown)
	return t.Put(c)
}

// MoveUp gives the new layer cut a higher place in its history. The former live layer, nil
// if there was none, then reads through cut.
func (t *Edit) MoveUp(cut *lvm2.LV, former *Layer, order uint64) error {
	if err := t.retag(cut, SetTag(cut.Tags, tagOrder, strconv.FormatUint(order, 10))); err != nil || former == nil {
		return err
	}
	lv := t.VG.LVByID(former.LV.ID)
	return t.retag(lv, SetTag(lv.Tags, tagOver, strconv.FormatUint(order, 10)))
}

// NewLayer returns the logical volume of a layer that is cut from o now. It has no extents
// and no CSI name yet.
func (v *View) NewLayer(name string, o *Volume, chunk size.Sectors) *lvm2.LV {
	length := v.BytesOf(o.LV)
	lv := NewLV(name, roleLayer,
		Tag(tagOf, string(o.LV.ID)), Tag(tagOrder, strconv.FormatUint(o.NextOrder(), 10)),
		Tag(tagCreated, strconv.FormatInt(time.Now().UnixNano(), 10)),
		Tag(tagLength, number(length.Sectors())), Tag(tagChunk, number(chunk)))
	if o.Forked() { // LVM2 must not activate the fork through its snapshot
		HandOff(lv)
	}
	SetAsked(lv, o.asked, length)
	SetContent(lv, o.Formatted, o.Unknown)
	return lv
}

// NewForkStore returns the logical volume of the store of a fork, without extents.
func NewForkStore(name string, fork *lvm2.LV, chunk size.Sectors) *lvm2.LV {
	lv := NewLV(name, roleFork, Tag(tagOf, string(fork.ID)), Tag(tagChunk, number(chunk)))
	HandOff(lv)
	return lv
}

// NewTrash returns the logical volume of a piece of trash, without extents.
func NewTrash() *lvm2.LV { return NewLV("", roleTrash) }

// NewVolumeLV returns the logical volume of a new volume, without extents. length is the
// size that the volume will have.
func NewVolumeLV(name string, spec VolumeSpec, length size.Bytes) *lvm2.LV {
	tags := []string{Tag(tagName, spec.Name), Tag(tagMode, string(spec.Mode))}
	if spec.Mode == Filesystem {
		tags = append(tags, Tag(tagFS, spec.FSType))
	}
	if spec.Source.Kind == FromNothing { // a copy is as formatted as its source
		tags = append(tags, Tag(tagUnformatted))
	}
	if spec.ReadOnly {
		tags = append(tags, Tag(tagReadOnly))
	}
	if spec.Shared {
		tags = append(tags, Tag(tagShared))
	}
	if spec.Source.Kind != FromNothing {
		from := string(spec.Source.Kind) + "/" + spec.Source.LV
		if spec.SourcePool != "" {
			from += "/" + spec.SourcePool
		}
		tags = append(tags, Tag(tagSource, from))
	}
	if spec.LentTo != "" {
		tags = append(tags, Tag(tagLent, spec.LentTo))
	}
	lv := NewLV(name, roleVolume, tags...)
	SetAsked(lv, spec.Size, length)
	return lv
}

// Show turns lv, which is new, into a reader of a layer; into a transient volume if chunk is
// not 0.
func Show(lv *lvm2.LV, layer lvm2.ID, chunk size.Sectors) {
	if chunk != 0 {
		lv.Tags = append(lv.Tags, Tag(tagTransient), Tag(tagChunk, number(chunk)))
	}
	lv.Tags = append(lv.Tags, Tag(tagReads, string(layer)))
	HandOff(lv)
}

// ReadThrough turns lv, which is new, into a fork of a layer. Nothing of it is copied yet.
func ReadThrough(lv *lvm2.LV, layer lvm2.ID) {
	lv.Tags = SetTag(DropTags(lv.Tags, tagHydrated), tagCopy, string(layer))
	HandOff(lv)
}

// UnknownOf returns the extents of lv that may hold an earlier owner's bytes.
func UnknownOf(lv *lvm2.LV) (RangeSet, error) {
	p, _, err := readProperties(lv.Tags)
	if err != nil {
		return nil, err
	}
	r := tagReader{p: p}
	unknown := r.unknown()
	return unknown, r.err
}

func number(n size.Sectors) string { return fmt.Sprint(uint64(n)) }
