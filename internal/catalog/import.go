package catalog

import (
	"context"
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// ImportSpec describes a logical volume of LVM2's that is to become a volume of the
// pool.
type ImportSpec struct {
	LV   string
	Name string // the CSI name; LV if empty
	// Probe examines the device. It returns how the volume is used, and the type of
	// the file system with which it is to be mounted, if it has one.
	Probe func(ctx context.Context, device string) (mode Mode, fsType string, err error)
}

// Importable finds the logical volume, and checks it as far as the metadata allows.
func (v *View) Importable(spec ImportSpec) (*lvm2.LV, error) {
	if err := CheckName(spec.Name); err != nil {
		return nil, err
	}
	lv := v.VG.LV(spec.LV)
	if lv == nil || SnapshotSegment(lv) != nil {
		return nil, fmt.Errorf("%w: there is no logical volume of that name", ErrNotFound)
	}
	if _, err := v.Kind(lv); err != nil {
		return nil, err
	}
	if v.TheirLV(spec.LV) == nil {
		if o := v.Volumes.Get(lv.ID); o != nil && !o.Deleted {
			return nil, fmt.Errorf("%w: it is already volume %q", ErrConflict, o.Name)
		}
		return nil, fmt.Errorf("%w: its tags of csi-dmsnap say that it is not a volume: %v", ErrPrecondition, lv.Tags)
	}
	if o := v.Named.Get(spec.Name); o != nil {
		return nil, fmt.Errorf("%w: volume %s/%s already has the name %q; choose another with --name", ErrConflict, v.VG.Name, o.LV.Name, spec.Name)
	}
	if len(spec.LV) > MaxLVName {
		return nil, fmt.Errorf("%w: its name is longer than the %d bytes that fit into an id; rename it with lvrename", ErrPrecondition, MaxLVName)
	}
	if !FitsDevices(v.VG.Name, spec.LV) {
		return nil, fmt.Errorf("%w: its name and its group's name are together too long for device names, where each hyphen counts twice; rename it with lvrename", ErrPrecondition)
	}
	if why := v.NotPlain(lv); why != "" {
		return nil, fmt.Errorf("%w: %s", ErrPrecondition, why)
	}
	if ReadOnlyLV(lv) {
		return nil, fmt.Errorf("%w: it is read-only; make it writable with lvchange -prw", ErrPrecondition)
	}
	return lv, v.Writable()
}
