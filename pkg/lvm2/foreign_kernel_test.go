//go:build kernel

package lvm2

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
)

// foreignLVs are logical volumes of types that the test kernel may not have the
// targets for, as lvm2 2.03 writes them: RAID 1, thin and its pool, cache and its
// pool, a mirror being moved, and a type that no lvm2 knows.
const foreignLVs = `
r { id = "RRRRRR-0000-0000-0000-0000-0000-000000" status = ["READ", "WRITE", "VISIBLE"] flags = [] creation_time = 1700000000 creation_host = "h" segment_count = 1
	segment1 { start_extent = 0 extent_count = 4 type = "raid1" device_count = 2 region_size = 4096 raids = [ "r_rmeta_0", "r_rimage_0", "r_rmeta_1", "r_rimage_1" ] } }
r_rmeta_0 { id = "RRRRRR-0000-0000-0000-0000-0000-000001" status = ["READ", "WRITE"] flags = [] segment_count = 1
	segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = [ "pv0", 0 ] } }
r_rmeta_1 { id = "RRRRRR-0000-0000-0000-0000-0000-000002" status = ["READ", "WRITE"] flags = [] segment_count = 1
	segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = [ "pv1", 0 ] } }
r_rimage_0 { id = "RRRRRR-0000-0000-0000-0000-0000-000003" status = ["READ", "WRITE"] flags = [] segment_count = 1
	segment1 { start_extent = 0 extent_count = 4 type = "striped" stripe_count = 1 stripes = [ "pv0", 1 ] } }
r_rimage_1 { id = "RRRRRR-0000-0000-0000-0000-0000-000004" status = ["READ", "WRITE", "WRITEMOSTLY"] flags = [] segment_count = 1
	segment1 { start_extent = 0 extent_count = 4 type = "striped" stripe_count = 1 stripes = [ "pv1", 1 ] } }
pool { id = "TTTTTT-0000-0000-0000-0000-0000-000000" status = ["READ", "WRITE", "VISIBLE"] flags = [] segment_count = 1
	segment1 { start_extent = 0 extent_count = 8 type = "thin-pool" metadata = "pool_tmeta" pool = "pool_tdata" transaction_id = 1 chunk_size = 128 discards = "passdown" zero_new_blocks = 1 } }
pool_tmeta { id = "TTTTTT-0000-0000-0000-0000-0000-000001" status = ["READ", "WRITE"] flags = [] segment_count = 1
	segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = [ "pv0", 10 ] } }
pool_tdata { id = "TTTTTT-0000-0000-0000-0000-0000-000002" status = ["READ", "WRITE"] flags = [] segment_count = 1
	segment1 { start_extent = 0 extent_count = 8 type = "striped" stripe_count = 1 stripes = [ "pv0", 11 ] } }
thin { id = "TTTTTT-0000-0000-0000-0000-0000-000003" status = ["READ", "WRITE", "VISIBLE"] flags = ["ACTIVATION_SKIP"] tags = ["thin-tag"] segment_count = 1
	segment1 { start_extent = 0 extent_count = 100 type = "thin" thin_pool = "pool" transaction_id = 0 device_id = 1 } }
cached { id = "CCCCCC-0000-0000-0000-0000-0000-000000" status = ["READ", "WRITE", "VISIBLE"] flags = [] segment_count = 1
	segment1 { start_extent = 0 extent_count = 6 type = "cache" cache_pool = "fast" origin = "cached_corig" } }
cached_corig { id = "CCCCCC-0000-0000-0000-0000-0000-000001" status = ["READ", "WRITE"] flags = [] segment_count = 1
	segment1 { start_extent = 0 extent_count = 6 type = "striped" stripe_count = 1 stripes = [ "pv1", 20 ] } }
fast { id = "CCCCCC-0000-0000-0000-0000-0000-000002" status = ["READ", "WRITE"] flags = [] segment_count = 1
	segment1 { start_extent = 0 extent_count = 3 type = "cache-pool+METADATA_FORMAT" data = "fast_cdata" metadata = "fast_cmeta" metadata_format = 2 chunk_size = 128 cache_mode = "writethrough" policy = "smq" policy_settings { migration_threshold = 2048 } } }
fast_cdata { id = "CCCCCC-0000-0000-0000-0000-0000-000003" status = ["READ", "WRITE"] flags = [] segment_count = 1
	segment1 { start_extent = 0 extent_count = 3 type = "striped" stripe_count = 1 stripes = [ "pv1", 30 ] } }
fast_cmeta { id = "CCCCCC-0000-0000-0000-0000-0000-000004" status = ["READ", "WRITE"] flags = [] segment_count = 1
	segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = [ "pv1", 33 ] } }
`

const unknownLV = `
alien { id = "AAAAAA-0000-0000-0000-0000-0000-000000" status = ["READ", "WRITE", "VISIBLE"] flags = [] segment_count = 1
	segment1 { start_extent = 0 extent_count = 5 type = "alien" magic_key = 77 ratio = 1.500000 areas { list = [ "pv0", 40 ] } } }
`

// What this package does not understand comes out of our commits as lvm2 put it in.
func TestInteropForeignLVs(t *testing.T) {
	disks := scratch(t, 2)
	lvm(t, "vgcreate", "vg", disks[0], disks[1])
	path := t.TempDir() + "/edited"
	lvm(t, "vgcfgbackup", "-f", path, "vg")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		lvs     string
		tools   bool // lvm2 changes a volume group with these
		used    Extents
		foreign string
	}{{foreignLVs, true, 29, "r"}, {foreignLVs + unknownLV, false, 34, "alien"}} {
		end := strings.LastIndex(string(text), "}")
		edited := string(text[:end]) + "logical_volumes {" + c.lvs + "}\n}\n"
		if err := os.WriteFile(path, []byte(edited), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, errs, err := tryLVM("vgcfgrestore", "--force", "-f", path, "vg"); err != nil {
			t.Fatalf("vgcfgrestore: %v\n%s%s", err, out, errs)
		}
		before := vgText(t)
		s := openKernelVG(t, disks)
		vg := read(t, s)
		free := Extents(0)
		for _, r := range vg.Free() {
			free += r.Count
		}
		if used := vg.PVs[0].PECount + vg.PVs[1].PECount - free; used != c.used {
			t.Errorf("%d extents are used, want %d", used, c.used)
		}
		if err := vg.Clone().Remove(vg.LV(c.foreign).ID); !errors.Is(err, ErrForeignSegment) {
			t.Errorf("remove %s: %v", c.foreign, err)
		}
		locked(t, s, func(vg *VG) error { return vg.Add(linearLV("ours", 0, 100, 1)) })
		if c.tools {
			lvm(t, "lvchange", "--addtag", "x", "vg/ours")
		}
		locked(t, s, func(vg *VG) error { return vg.Remove(vg.LV("ours").ID) })
		if after := vgText(t); after != before {
			t.Errorf("our commits changed\n%s\ninto\n%s", before, after)
		}
		s.Close()
	}
}

// vgText is backup, but lvm2 warns of what it does not know.
func vgText(t *testing.T) string {
	t.Helper()
	path := t.TempDir() + "/backup"
	if out, errs, err := tryLVM("vgcfgbackup", "-f", path, "vg"); err != nil {
		t.Fatalf("vgcfgbackup: %v\n%s%s", err, out, errs)
	}
	return comparable(t, path)
}

// lvm2 marks what we refuse to touch as we expect.
func TestInteropRefusals(t *testing.T) {
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
	// A missing disk: lvm2 lets nothing be created, and neither do we.
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

// A device stacked on a physical volume shows the same label: as RAID and
// multipath devices do, it is the one to use.
func TestStackedPV(t *testing.T) {
	disks := scratch(t, 2)
	if err := CreateVG(context.Background(), kernelHost, "vg", disks, CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	sectors := strings.TrimSpace(lvm(t, "blockdev", "--getsz", disks[1]))
	for _, c := range [][2]string{{"t-lower", disks[1]}, {"t-upper", "/dev/mapper/t-lower"}} {
		lvm(t, "dmsetup", "create", c[0], "--table", "0 "+sectors+" linear "+c[1]+" 0")
	}
	t.Cleanup(func() { lvm(t, "dmsetup", "remove", "t-upper", "t-lower") })
	const upper, lower = "/dev/mapper/t-upper", "/dev/mapper/t-lower"
	for _, order := range [][]string{{disks[0], disks[1], lower, upper}, {upper, disks[1], lower, disks[0]}} {
		s := openKernelVG(t, order)
		if got := read(t, s).PVs[1].Device; got != upper {
			t.Errorf("of %v the physical volume is %s", order, got)
		}
		s.Close()
	}
}
