//go:build kernel

package lvm2

import (
	"fmt"
	"strings"
	"testing"
)

// TestCheckLVName_lvcreate: CheckLVName agrees with lvcreate. Where CheckLVName
// is stricter, the device or its snapshot could not be activated.
func TestCheckLVName_lvcreate(t *testing.T) {
	disks := scratch(t, 1)
	lvm(t, "vgcreate", "vg", disks[0])
	for i, name := range []string{"x-cow", "x-real", ".a", "+a", "0123", strings.Repeat("y", 119), "snapshot1", "pvmovex", "a_tmeta", "a_pmspare", "a b", "a@b", ".."} {
		ours := CheckLVName("vg", name) == nil
		_, _, err := tryLVM("lvcreate", "-an", "-Zn", "-Wn", "-l", "1", "-n", name, "vg")
		if ours != (err == nil) {
			t.Errorf("%d: %q: CheckLVName accepts it: %v; lvm2: %v", i, name, ours, err)
		}
	}
	s := openKernelVG(t, disks)
	for i, c := range []string{"a", "A9_+.-/=!:&#", strings.Repeat("t", maxTag)} {
		locked(t, s, addLV(fmt.Sprintf("tag%d", i), 0, Extents(100+i), 1))
		locked(t, s, func(vg *VG) error {
			lv := vg.LV(fmt.Sprintf("tag%d", i)).Clone()
			lv.Tags = []string{c}
			return vg.Replace(lv)
		})
		if row := fields(t, "lvs", "-o", "lv_tags", fmt.Sprintf("vg/tag%d", i))[0]; row[0] != c {
			t.Errorf("tag %q reads as %q", c, row[0])
		}
	}
	healthy(t)
}
