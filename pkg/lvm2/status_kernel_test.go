//go:build kernel

package lvm2

import (
	"context"
	"errors"
	"testing"
)

// TestStatus_asLVM2: a volume group that lvm2 marked as exported, foreign or
// missing a disk is refused as expected.
func TestStatus_asLVM2(t *testing.T) {
	ctx := context.Background()
	disks := scratch(t, 2)
	lvm(t, "vgcreate", "vg", disks[0])
	lvm(t, "vgexport", "vg")
	if _, err := OpenVG(ctx, kernelHost, "vg", disks); !errors.Is(err, ErrExported) {
		t.Errorf("exported: %v", err)
	}
	lvm(t, "vgimport", "vg")
	if out, errs, err := tryLVM("vgchange", "-y", "--systemid", "elsewhere", "vg"); err != nil {
		t.Fatalf("vgchange --systemid: %v\n%s%s", err, out, errs)
	}
	if _, err := OpenVG(ctx, kernelHost, "vg", disks); !errors.Is(err, ErrForeignSystemID) {
		t.Errorf("foreign: %v", err)
	}
	h := kernelHost
	h.SystemID = "elsewhere"
	s, err := OpenVG(ctx, h, "vg", disks)
	if err != nil {
		t.Fatal(err)
	}
	edit(t, s, addLV("a", 0, 0, 1))
	edit(t, s, func(vg *VG) error { return vg.Remove(vg.LV("a").ID) })
	s.Close()
	there := `global/system_id_source="lvmlocal" local/system_id="elsewhere"`
	lvm(t, "vgck", "--config", there, "vg")
	lvm(t, "vgremove", "-y", "--config", there, "vg")
	// Without a disk, lvm2 creates no logical volumes, and Commit fails.
	lvm(t, "vgcreate", "vg", disks[0], disks[1])
	s = openKernelVG(t, disks)
	vg := read(t, s)
	s.Close()
	head := content(t, disks[1], 0, 4096)
	overwriteDevice(t, disks[1], make([]byte, 4096))
	s = openKernelVG(t, disks)
	next := read(t, s).Clone()
	if err := next.Add(linearLV("a", 0, 0, 1)); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx, next); !errors.Is(err, ErrMissingPV) {
		t.Errorf("commit without a disk: %v", err)
	}
	overwriteDevice(t, disks[1], head)
	if got := read(t, s); got.Seqno != vg.Seqno || got.PVs[1].Missing() {
		t.Errorf("with the disk back: %+v", got.PVs[1])
	}
	healthy(t)
}
