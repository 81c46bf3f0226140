package pool

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The edits in this file record one fact each in the tags of a logical volume. No
// other package writes tags.

// retag replaces a logical volume with a copy that has other tags.
func (t *edit) retag(lv *lvm2.LV, tags []string) error {
	c := lv.Clone()
	c.Tags = tags
	return t.put(c)
}

// setFormatted records that there may be a file system on the volume, or what a raw
// device was given: it never gets another one.
func (t *edit) setFormatted(o *volume) error {
	return t.retag(o.lv, dropTags(o.lv.Tags, tagUnformatted))
}

// setMode records the mode in which the volume is used from now on. fsType is only
// of mode Filesystem.
func (t *edit) setMode(o *volume, mode Mode, fsType string) error {
	tags := setTag(dropTags(o.lv.Tags, tagFS), tagMode, string(mode))
	if mode == Filesystem {
		tags = append(tags, tag(tagFS, fsType))
		if o.formatted {
			tags = setTag(tags, tagRaw)
		}
	}
	return t.retag(o.lv, tags)
}

// unname takes its CSI name from a snapshot, and throws away what nothing needs then.
func (t *edit) unname(l *layer) error {
	if err := t.retag(l.lv, dropTags(l.lv.Tags, tagName)); err != nil {
		return err
	}
	return t.prune(l)
}

// setBound records that the frozen store lv has just what changed until the next
// cut in its chunks below bound.
func (t *edit) setBound(lv *lvm2.LV, bound size.Sectors) error {
	return t.retag(lv, setTag(lv.Tags, tagExact, number(bound)))
}

// setUsed records how much of a store is in use.
func (t *edit) setUsed(lv *lvm2.LV, used size.Sectors) error {
	return t.retag(lv, setTag(lv.Tags, tagUsed, number(used)))
}

// collecting returns the logical volume of a layer as one that another layer is
// folded into: its store holds more than what changed until the next cut.
func (l *layer) collecting() *lvm2.LV {
	c := l.lv.Clone()
	c.Tags = setTag(dropTags(c.Tags, tagUsed, tagExact), tagSuperset)
	return c
}

// folded records that heir has all that gone has, which is thrown away.
func (t *edit) folded(heir, gone *layer) error {
	tags := setTag(dropTags(heir.lv.Tags, tagUsed), tagThrough, strconv.FormatUint(gone.through, 10))
	if gone.over > 0 { // what gone read through is what the heir reads through now
		tags = setTag(tags, tagOver, strconv.FormatUint(gone.over, 10))
	}
	if err := t.retag(heir.lv, tags); err != nil {
		return err
	}
	return t.discard(gone.lv)
}

// setHydrated records that all of a fork but missing is copied. length is that of
// the snapshot that it reads through.
func (t *edit) setHydrated(o *volume, missing spans, length size.Sectors) error {
	return t.retag(o.lv, setTag(o.lv.Tags, tagHydrated, hydratedBut(missing, length).String()))
}

// setBegun records that a transient volume was activated. lost: what was written to
// it before is gone.
func (t *edit) setBegun(o *volume, lost bool) error {
	tags := setTag(o.lv.Tags, tagBegun)
	if lost {
		tags = setTag(tags, tagReset)
	}
	return t.retag(o.lv, tags)
}

// startOver records that a transient volume has lost what was written to it, and
// begins again with what it shows, which has no file system.
func (t *edit) startOver(o *volume, shows *layer) error {
	c := o.lv.Clone()
	c.Tags = setTag(c.Tags, tagReset)
	setContent(c, false, shows.unknown)
	return t.put(c)
}

// forgetReset records that whoever used a transient volume knows that it began again.
func (t *edit) forgetReset(o *volume) error { return t.retag(o.lv, dropTags(o.lv.Tags, tagReset)) }

// wiped records that extents of a volume hold zeroes. A transient one is begun by
// that: if its device is lost, so is what was wiped.
func (t *edit) setWiped(o *volume, extents rangeSet) error {
	c := o.lv.Clone()
	if o.transient {
		c.Tags = setTag(c.Tags, tagBegun)
	}
	setUnknown(c, o.unknown.subtract(extents))
	return t.put(c)
}

// setCopying makes lv, which is new, a volume that is not complete: state says how much of it is copied.
func setCopying(lv *lvm2.LV, state copyState) {
	lv.Tags = setTag(lv.Tags, tagCopying, state.String())
	handOff(lv)
}

// recordCopied records how much of a volume is copied.
func (t *edit) recordCopied(o *volume, state copyState) error {
	return t.retag(o.lv, setTag(o.lv.Tags, tagCopying, state.String()))
}

// completeCopy makes a volume that was copied one like any other.
func (t *edit) completeCopy(o *volume) error {
	c := o.lv.Clone()
	c.Tags = dropTags(c.Tags, tagCopying)
	handBack(c)
	return t.put(c)
}

// allowedStatic returns a logical volume of LVM2's own as one that a static volume may name.
func allowedStatic(lv *lvm2.LV) *lvm2.LV {
	c := lv.Clone()
	c.Tags = setTag(c.Tags, tagStatic)
	return c
}

// staticTag is what lvchange --addtag gives a logical volume of LVM2's own that a
// static volume may name.
func staticTag() string { return tag(tagStatic) }

// hasTags reports whether a logical volume has tags of ours.
func hasTags(lv *lvm2.LV) bool {
	for _, t := range lv.Tags {
		if strings.HasPrefix(t, tagPrefix) {
			return true
		}
	}
	return false
}

// asVolume returns a logical volume of LVM2's own as a volume of that CSI name.
func asVolume(lv *lvm2.LV, name string, mode Mode, fsType string) *lvm2.LV {
	c := lv.Clone()
	c.Tags = append(dropTags(c.Tags, tagStatic), tag(tagRole, roleVolume), tag(tagName, name), tag(tagMode, string(mode)))
	if mode == Filesystem {
		c.Tags = append(c.Tags, tag(tagFS, fsType))
	}
	if readOnlyLV(c) {
		c.Tags = append(c.Tags, tag(tagReadOnly))
	}
	return c
}

// adopted says what a store of LVM2's becomes a layer with.
type adopted struct {
	order, over uint64 // places in the history: its own, and of the layer that it reads through
	length      size.Sectors
	chunk       size.Sectors
	lost        bool
}

// asLayer makes the store of a snapshot of LVM2's a frozen layer of o, named like it.
func (t *edit) asLayer(lv *lvm2.LV, o *volume, a adopted) error {
	c := lv.Clone()
	c.Status = []string{lvm2.StatusRead, lvm2.StatusVisible}
	handOff(c)
	c.Tags = append(dropTags(c.Tags, tagStatic), tag(tagRole, roleLayer), tag(tagName, lv.Name), tag(tagOf, string(o.lv.ID)),
		tag(tagOrder, strconv.FormatUint(a.order, 10)), tag(tagOver, strconv.FormatUint(a.over, 10)),
		tag(tagCreated, strconv.FormatInt(lv.CreationTime.UnixNano(), 10)), tag(tagLength, number(a.length)), tag(tagChunk, number(a.chunk)),
		tag(tagSuperset)) // it may have been written to, and holds what changed after later snapshots
	if a.lost {
		c.Tags = append(c.Tags, tag(tagLost))
	}
	setContent(c, o.formatted, o.unknown)
	return t.put(c)
}

// moveUp gives the layer that was just cut a higher place in its history, and has the
// former live layer, nil if there was none, read through it.
func (t *edit) moveUp(cut *lvm2.LV, former *layer, order uint64) error {
	if err := t.retag(cut, setTag(cut.Tags, tagOrder, strconv.FormatUint(order, 10))); err != nil || former == nil {
		return err
	}
	lv := t.vg.LVByID(former.lv.ID)
	return t.retag(lv, setTag(lv.Tags, tagOver, strconv.FormatUint(order, 10)))
}

// newLayer describes the logical volume of a layer that is cut now of o: nobody's yet, and
// without extents.
func (v *view) newLayer(name string, o *volume, chunk size.Sectors) *lvm2.LV {
	length := v.bytesOf(o.lv)
	lv := newLV(name, roleLayer,
		tag(tagOf, string(o.lv.ID)), tag(tagOrder, strconv.FormatUint(o.nextOrder(), 10)),
		tag(tagCreated, strconv.FormatInt(time.Now().UnixNano(), 10)),
		tag(tagLength, number(length.Sectors())), tag(tagChunk, number(chunk)))
	if o.forked() { // LVM2 must not activate the fork through its snapshot
		handOff(lv)
	}
	setAsked(lv, o.asked, length)
	setContent(lv, o.formatted, o.unknown)
	return lv
}

// newForkStore describes the logical volume of the store of a fork, without extents.
func newForkStore(name string, fork *lvm2.LV, chunk size.Sectors) *lvm2.LV {
	lv := newLV(name, roleFork, tag(tagOf, string(fork.ID)), tag(tagChunk, number(chunk)))
	handOff(lv)
	return lv
}

// newTrash describes a piece of trash, without extents.
func newTrash() *lvm2.LV { return newLV("", roleTrash) }

// newVolumeLV describes the logical volume of the volume that spec asks for, without
// extents. It will have length.
func newVolumeLV(name string, spec VolumeSpec, length size.Bytes) *lvm2.LV {
	tags := []string{tag(tagName, spec.Name), tag(tagMode, string(spec.Mode))}
	if spec.Mode == Filesystem {
		tags = append(tags, tag(tagFS, spec.FSType))
	}
	if spec.Source.Kind == FromNothing { // a copy is as formatted as its source
		tags = append(tags, tag(tagUnformatted))
	}
	if spec.ReadOnly {
		tags = append(tags, tag(tagReadOnly))
	}
	if spec.Shared {
		tags = append(tags, tag(tagShared))
	}
	if spec.Source.Kind != FromNothing {
		from := string(spec.Source.Kind) + "/" + spec.Source.LV
		if spec.SourcePool != "" {
			from += "/" + spec.SourcePool
		}
		tags = append(tags, tag(tagSource, from))
	}
	if spec.lentTo != "" {
		tags = append(tags, tag(tagLent, spec.lentTo))
	}
	lv := newLV(name, roleVolume, tags...)
	setAsked(lv, spec.Size, length)
	return lv
}

// show makes lv, which is new, a reader of a layer. With a chunk it is a transient one.
func show(lv *lvm2.LV, layer lvm2.ID, chunk size.Sectors) {
	if chunk != 0 {
		lv.Tags = append(lv.Tags, tag(tagTransient), tag(tagChunk, number(chunk)))
	}
	lv.Tags = append(lv.Tags, tag(tagReads, string(layer)))
	handOff(lv)
}

// readThrough makes lv, which is new, a fork of a layer: nothing of it is copied.
func readThrough(lv *lvm2.LV, layer lvm2.ID) {
	lv.Tags = setTag(dropTags(lv.Tags, tagHydrated), tagCopy, string(layer))
	handOff(lv)
}

// unknownOf returns what is on record as unknown of lv.
func unknownOf(lv *lvm2.LV) (rangeSet, error) {
	p, _, err := readProperties(lv.Tags)
	if err != nil {
		return nil, err
	}
	r := tagReader{p: p}
	unknown := r.unknown()
	return unknown, r.err
}

func number(n size.Sectors) string { return fmt.Sprint(uint64(n)) }
