package catalog

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog/catalogtest"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// FuzzLVName: every name that CSI allows becomes a name that LVM2 allows, that nothing
// else has, and with which the names of all devices fit.
func FuzzLVName(f *testing.F) {
	for _, name := range []string{"pvc-1", "snapshot-1", "base", "ä/..", "-", "a--------------------------------------------------------------------------------------------------------------------b", "dmsnap-trash-x"} {
		f.Add(name, "vg")
	}
	f.Fuzz(func(t *testing.T, csi, group string) {
		if CheckName(csi) != nil || CheckGroupName(group) != nil {
			return
		}
		v := NewView(catalogtest.Group(t), nil)
		v.VG.Name = group
		name, err := v.LVName(csi)
		if err != nil {
			t.Fatalf("%q in %q: %v", csi, group, err)
		}
		if err := lvm2.CheckLVName(group, name); err != nil || v.VG.LV(name) != nil || !FitsDevices(group, name) {
			t.Errorf("%q in %q became %q: %v", csi, group, name, err)
		}
	})
}
