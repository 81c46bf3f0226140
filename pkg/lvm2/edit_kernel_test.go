//go:build kernel

package lvm2

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// foreignLVs are logical volumes as lvm2 2.03 writes them: RAID 1, thin and its pool,
// cache and its pool. The test kernel may lack their targets.
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

// unknownLV is a logical volume of a type that no lvm2 knows.
const unknownLV = `
alien { id = "AAAAAA-0000-0000-0000-0000-0000-000000" status = ["READ", "WRITE", "VISIBLE"] flags = [] segment_count = 1
	segment1 { start_extent = 0 extent_count = 5 type = "alien" magic_key = 77 ratio = 1.500000 areas { list = [ "pv0", 40 ] } } }
`

// TestCommit_preservesForeignLVs: commits preserve logical volumes that this
// package does not understand as lvm2 wrote them.
func TestCommit_preservesForeignLVs(t *testing.T) {
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
		tools   bool // lvm2 changes a volume group with the logical volumes
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
			t.Errorf("the commits changed\n%s\ninto\n%s", before, after)
		}
		s.Close()
	}
}

// vgText is backup for a volume group about which lvm2 warns.
func vgText(t *testing.T) string {
	t.Helper()
	path := t.TempDir() + "/backup"
	if out, errs, err := tryLVM("vgcfgbackup", "-f", path, "vg"); err != nil {
		t.Fatalf("vgcfgbackup: %v\n%s%s", err, out, errs)
	}
	return comparable(t, path)
}
