package catalog

import (
	"errors"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// SetAside takes o's names away. It hides o while its snapshots need its blocks,
// and otherwise discards o. It returns o's new name; "" if o was discarded.
func (t *Edit) SetAside(o *Volume) (string, error) {
	if t.Disposable(o) {
		return "", errors.Join(t.Discard(storesOf(o.Layers)...), t.discardBlocks(o))
	}
	name, err := t.LVName("former-" + o.LV.Name)
	if err != nil {
		return "", err
	}
	c := o.LV.Clone()
	c.Name = name
	c.Tags = append(DropTags(c.Tags, tagName), Tag(tagDeleted), Tag(tagFormer, o.LV.Name))
	HandOff(c)
	if err := t.Put(c); err != nil {
		return "", err
	}
	if live := o.Live(); live != nil { // LVM2 refers to the origin by its name
		hidden := live.Snap.Clone()
		hidden.Segments[0].Snapshot.Origin = name
		if err := t.Put(hidden); err != nil {
			return "", err
		}
	}
	return name, nil
}

// Known returns the name of the logical volume to which o's snapshots belong for
// users: o's own name, unless a rollback gave that name to another logical volume.
func (v *Volume) Known() string {
	if v.Former != "" {
		return v.Former
	}
	return v.LV.Name
}

// SnapshotsOf returns o's snapshots, oldest first, including those from before
// rollbacks.
func (v *View) SnapshotsOf(o *Volume) []*Layer {
	var out []*Layer
	for _, x := range v.Volumes.All() {
		if x != o && x.Former == "" || x.Known() != o.LV.Name {
			continue // its snapshots are its own
		}
		for _, l := range x.Layers {
			if l.Named && v.Snapshots.Get(l.Name) == l {
				out = append(out, l)
			}
		}
	}
	slices.SortFunc(out, func(a, b *Layer) int { return a.Created.Compare(b.Created) })
	return out
}

// Aside reports whether a rollback may have renamed a logical volume.
func (v *View) Aside(lv *lvm2.LV) bool {
	if lv == nil {
		return false
	}
	o := v.Volumes.Get(lv.ID)
	return v.IsTrash(lv) || o != nil && o.Former != ""
}
