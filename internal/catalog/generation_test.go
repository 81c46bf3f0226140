package catalog

import (
	"fmt"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// largeGroup returns a group of about n logical volumes: volumes with four layers each, one of
// them live.
func largeGroup(tb testing.TB, n int) *lvm2.VG {
	tb.Helper()
	vg, err := lvm2.ParseVG([]byte("vg {\nid = \"gggggg-gggg-gggg-gggg-gggg-gggg-gggggg\"\nseqno = 5\nformat = \"lvm2\"\nstatus = [\"RESIZEABLE\", \"READ\", \"WRITE\"]\nflags = []\nextent_size = 8192\nmax_lv = 0\nmax_pv = 0\nmetadata_copies = 0\n" +
		"physical_volumes {\npv0 {\nid = \"pppppp-pppp-pppp-pppp-pppp-pppp-pppppp\"\ndevice = \"/dev/sda\"\nstatus = [\"ALLOCATABLE\"]\nflags = []\ndev_size = 4096000000\npe_start = 2048\npe_count = 490000\n}\n}\n}\n" +
		"contents = \"Text Format Volume Group\"\nversion = 1\n"))
	if err != nil {
		tb.Fatal(err)
	}
	vg.PVs[0].Device = "/dev/sda"
	e := &Edit{View: NewView(vg, nil)}
	at := lvm2.Extents(0)
	put := func(lv *lvm2.LV) *lvm2.LV {
		lv.Segments = AppendExtents(nil, lvm2.Range{Start: at, Count: 1})
		at += 2
		if err := e.Put(lv); err != nil {
			tb.Fatal(err)
		}
		return lv
	}
	for i := range n / 6 {
		name := fmt.Sprintf("pvc-0d1c5f9e-0000-4b1e-9d60-%012d", i)
		o := &Volume{LV: put(NewVolumeLV(name, VolumeSpec{Name: name, Mode: Filesystem, FSType: "ext4"}, e.ExtentSize()))}
		for k := range 4 {
			lv := e.NewLayer(fmt.Sprintf("snap-%d-%s", k, name), o, 32)
			if k < 3 {
				lv.Tags = append(lv.Tags, Tag(tagUsed, "64"), Tag(tagExact))
				lv.Status = []string{lvm2.StatusRead, lvm2.StatusVisible}
				HandOff(lv)
			}
			put(lv)
			if err := e.Record(CutLayer{Layer: lv.ID, At: time.Now()}, "snapshot-"+lv.Name); err != nil {
				tb.Fatal(err)
			}
			o.Layers = append(o.Layers, &Layer{Order: uint64(k + 1), Through: uint64(k + 1), Snap: o.LV})
			if k == 3 {
				if err := e.Join(o, lv, e.ExtentSize(), 32); err != nil {
					tb.Fatal(err)
				}
			}
		}
	}
	return e.VG
}

// BenchmarkNewView_create measures the cost of one CreateVolume without the disk and the
// metadata's text: the copy of the group, the edit and the next view.
func BenchmarkNewView_create(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprintf("LVs=%d", n), func(b *testing.B) {
			v := NewView(largeGroup(b, n).Clone(), nil)
			if len(v.Strange) > 0 {
				b.Fatal(v.Strange)
			}
			b.ReportAllocs()
			for b.Loop() {
				own := *v
				own.VG = v.VG.Clone()
				e := &Edit{View: &own}
				ranges, err := e.AllocateOn(AnyKind, 1, LowEnd)
				if err != nil {
					b.Fatal(err)
				}
				lv := NewVolumeLV("new", VolumeSpec{Name: "new", Mode: Block}, e.ExtentSize())
				lv.Segments = AppendExtents(nil, ranges...)
				if err := e.Put(lv); err != nil {
					b.Fatal(err)
				}
				NewView(e.VG, v)
			}
		})
	}
}
