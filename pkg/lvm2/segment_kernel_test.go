//go:build kernel

package lvm2

import (
	"context"
	"strings"
	"testing"
)

// TestSegment_errorAsLVM2: lvm2 accepts a logical volume of type error, even
// one larger than the volume group, and this package accepts lvm2's.
func TestSegment_errorAsLVM2(t *testing.T) {
	disks := scratch(t, 1)
	if err := CreateVG(context.Background(), kernelHost, "vg", disks, CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	lvm(t, "lvcreate", "--type", "error", "-an", "-ky", "-l", "7", "-n", "theirs", "vg")
	s := openKernelVG(t, disks)
	locked(t, s, func(vg *VG) error { return vg.Add(errorLV("ours", 10_000)) })
	healthy(t)
	var got []string
	for _, row := range fields(t, "lvs", "-o", "lv_name,lv_attr,lv_size,segtype", "--units", "m", "--nosuffix", "vg") {
		got = append(got, strings.Join(row, " "))
	}
	if want := "ours vri---v--k 40000.00 error\ntheirs vwi---v--k 28.00 error"; strings.Join(got, "\n") != want {
		t.Errorf("lvs says\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	for _, row := range fields(t, "vgs", "-o", "vg_extent_count,vg_free_count", "vg") {
		if row[0] != row[1] {
			t.Errorf("of %s extents %s are free", row[0], row[1])
		}
	}
	lvm(t, "vgchange", "-ay", "vg")
	if tables := lvm(t, "dmsetup", "table"); strings.Contains(tables, "vg-") {
		t.Errorf("vgchange -ay activated\n%s", tables)
	}
	vg := locked(t, s, func(vg *VG) error {
		c := vg.LV("theirs").Clone()
		c.Tags = []string{"tag"}
		return vg.Replace(c)
	})
	if lv := vg.LV("theirs"); lv.Size() != 7 || lv.Segments[0].Type != TypeError {
		t.Errorf("lvm2's is read as %+v", lv)
	}
	healthy(t)
	lvm(t, "lvchange", "--addtag", "x", "vg/ours")
	lvm(t, "lvremove", "-y", "vg/ours")
	lvm(t, "vgremove", "-f", "-y", "vg")
}
