package catalog

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// OfTrash reports whether the device with the UUID is of a deleted logical volume.
func (v *View) OfTrash(uuid string) bool {
	id, _, _ := SplitUUID(v.VG.ID, uuid)
	return v.IsTrash(v.VG.LVByID(lvm2.ID(id)))
}

// Root returns the root of the family of lv: the volume that lv reads through, directly or
// indirectly, and that reads through no other volume. The devices of a family depend on each
// other.
func (v *View) Root(lv string) string {
	all := v.Family(lv)
	return all[len(all)-1]
}

// Family returns the name of lv, followed by the names of the volumes that it reads through.
func (v *View) Family(lv string) []string {
	out := []string{lv}
	for o := v.VolumeByLV(lv); o != nil && o.From() != ""; {
		l := v.Layers.Get(o.From())
		if l == nil {
			break
		}
		o = v.Volumes.Get(l.Of)
		if slices.Contains(out, o.LV.Name) { // a circle, made by changed tags
			break
		}
		out = append(out, o.LV.Name)
	}
	return out
}

// Circular returns an error if o reads through itself. Only tags that somebody has changed
// can say so, and no devices can follow them.
func (v *View) Circular(o *Volume) error {
	seen := map[*Volume]bool{}
	for x := o; x != nil && x.From() != ""; {
		if seen[x] {
			return fmt.Errorf("volume %s/%s: %w: its tags were changed so that it reads through itself; restore them with vgcfgrestore", v.VG.Name, o.LV.Name, ErrPrecondition)
		}
		seen[x] = true
		l := v.Layers.Get(x.From())
		if l == nil {
			break
		}
		x = v.Volumes.Get(l.Of)
	}
	return nil
}

// OwnerOf returns the volume that a logical volume is part of; nil if there is none.
func (v *View) OwnerOf(id lvm2.ID) *Volume {
	switch d := v.form(v.VG.LVByID(id)).(type) {
	case *Volume:
		return v.Volumes.Get(id)
	case *Layer:
		return v.Volumes.Get(d.Of)
	case *ForkStore:
		return v.Volumes.Get(d.of)
	case *Flat:
		return v.Volumes.Get(d.Of)
	}
	return nil
}

// SplitUUID splits a dm UUID of LVM2 into the logical volume's id and the layer.
func SplitUUID(vg lvm2.ID, uuid string) (lv, layer string, ok bool) {
	rest, ok := strings.CutPrefix(uuid, lvm2.DMUUID("", "", ""))
	if ok {
		rest, ok = strings.CutPrefix(rest, string(vg))
	}
	if !ok || len(rest) < 32 {
		return "", "", false
	}
	return rest[:32], strings.TrimPrefix(rest[32:], "-"), true
}

// Parts returns the logical volumes of v that may have devices: its own, and those of its
// layers, fork and flat stores.
func (v *Volume) Parts() []*lvm2.LV {
	parts := append([]*lvm2.LV{v.LV}, storesOf(v.Layers)...)
	if v.Fork != nil {
		parts = append(parts, v.Fork.LV)
	}
	for _, f := range v.Flats {
		parts = append(parts, f.LV)
	}
	return parts
}

// Members returns the volumes of each family by the name of the family's root. A volume
// comes before the volumes that read through it.
func (v *View) Members() map[string][]*Volume { return v.MembersOf(v.Volumes.Values()) }

// MembersOf is Members for some volumes.
func (v *View) MembersOf(some iter.Seq[*Volume]) map[string][]*Volume {
	out, depth := map[string][]*Volume{}, map[*Volume]int{}
	for o := range some {
		line := v.Family(o.LV.Name)
		root := line[len(line)-1]
		out[root], depth[o] = append(out[root], o), len(line)
	}
	for _, family := range out {
		slices.SortFunc(family, func(a, b *Volume) int {
			if n := depth[a] - depth[b]; n != 0 {
				return n
			}
			return strings.Compare(a.LV.Name, b.LV.Name)
		})
	}
	return out
}
