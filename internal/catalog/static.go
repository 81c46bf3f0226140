package catalog

import (
	"fmt"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// ReadOnlyLV reports whether LVM2 makes the device of lv read-only.
func ReadOnlyLV(lv *lvm2.LV) bool { return !slices.Contains(lv.Status, lvm2.StatusWrite) }

// TheirLV returns the visible logical volume of that name that LVM2 made; nil if
// there is none. The driver may activate it, but never formats, wipes, grows, cuts
// or removes it. StaticUse reports whether a static volume may use it.
func (v *View) TheirLV(name string) *lvm2.LV {
	lv := v.VG.LV(name)
	if lv == nil || SnapshotSegment(lv) != nil {
		return nil
	}
	if !v.IsTheirs(lv) {
		return nil
	}
	return lv
}

// NotPlain returns why a logical volume of LVM2's is more than a plain linear
// device; "" if it is not. Only LVM2 knows how to activate such a logical volume.
func (v *View) NotPlain(lv *lvm2.LV) string {
	switch users := v.VG.Users(lv.Name); {
	case len(users) > 0:
		return "LVM2 uses it for " + strings.Join(users, ", ")
	case !slices.Contains(lv.Status, lvm2.StatusVisible):
		return "it is internal to LVM2"
	case !Linear(lv):
		return "it is not linear"
	}
	return ""
}

// NotOurs returns the error of an operation that only volumes of the pool support.
func (v *View) NotOurs(lv *lvm2.LV) error {
	return fmt.Errorf("logical volume %s/%s: %w: LVM2 made it, so it can only be staged and published as it is; `csi-dmsnap import POOL %[2]s` makes it a volume of the pool",
		v.VG.Name, lv.Name, ErrPrecondition)
}

// Inner returns what a logical volume is a part of, or that it has no content of
// its own; "" if people use it directly.
func (v *View) Inner(lv *lvm2.LV) string {
	if !slices.Contains(lv.Status, lvm2.StatusVisible) || strings.HasPrefix(lv.Name, "pvmove") {
		return "it is internal to LVM2"
	}
	for _, s := range lv.Segments {
		if strings.HasSuffix(s.Type, "-pool") {
			return "it is a " + s.Type
		}
	}
	for _, x := range v.VG.LVs {
		if s := SnapshotSegment(x); s != nil && s.COWStore == lv.Name {
			return "it is the store of a snapshot of " + s.Origin
		}
	}
	return ""
}

// StaticUse returns an error if a static volume must not name a logical volume of
// LVM2's. The host's own logical volumes are in the same group, and a user who may
// create a PersistentVolume need not be one who may give them away.
func (v *View) StaticUse(lv *lvm2.LV) error {
	at := v.VG.Name + "/" + lv.Name
	if why := v.Inner(lv); why != "" {
		return fmt.Errorf("logical volume %s: %w: %s", at, ErrPrecondition, why)
	}
	if d, ok := v.form(lv).(foreign); !ok || !d.static {
		return fmt.Errorf("logical volume %s: %w: LVM2 made it, and it is not marked for static volumes; mark it on its node with `csi-dmsnap import --static POOL %s`, or with lvchange --addtag %s %s",
			at, ErrPrecondition, lv.Name, Tag(tagStatic), at)
	}
	return nil
}
