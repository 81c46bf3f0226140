//go:build !kernel

package lvm2

import (
	"context"
	"fmt"
	"testing"
)

// largeVG returns a volume group of n logical volumes with tags like those of
// csi-dmsnap.
func largeVG(t testing.TB, n int) *VG {
	t.Helper()
	vg := newVG("vg", 8192, nil, nil, "")
	pv := &PV{ID: NewID(), Device: "/dev/x", PEStart: 2048, PECount: 1 << 24, Status: []string{statusAllocatable}, key: "pv0"}
	pv.text = pv.encode()
	vg.PVs = []*PV{pv}
	for i := range n {
		lv := linearLV(fmt.Sprintf("pvc-0d1c5f9e-%04x-4b1e-9d60-3f6a1b2c%04x", i, i), 0, Extents(300*i), 100)
		lv.Tags = []string{"dmsnap:role=volume", "dmsnap:name=pvc-0d1c5f9e-0000-4b1e-9d60-3f6a1b2c0000", "dmsnap:mode=filesystem", "dmsnap:fs=ext4"}
		lv.Segments = append(lv.Segments, Segment{Start: 100, Count: 100, Type: TypeStriped, Stripes: []Stripe{{Start: Extents(300*i + 100)}}})
		if err := vg.Add(lv); err != nil {
			t.Fatal(err)
		}
	}
	return vg
}

func benchSizes(b *testing.B, run func(b *testing.B, vg *VG)) {
	for _, n := range []int{600, 10000} {
		b.Run(fmt.Sprintf("volumes=%d", n), func(b *testing.B) {
			vg := largeVG(b, n)
			b.ReportAllocs()
			run(b, vg)
		})
	}
}

func BenchmarkParse(b *testing.B) {
	benchSizes(b, func(b *testing.B, vg *VG) {
		text := vg.Text(Stamp{})
		for b.Loop() {
			if _, err := ParseVG(text); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkEdit measures a change without the disk: clone, replace a logical volume,
// validate and encode.
func BenchmarkEdit(b *testing.B) {
	benchSizes(b, func(b *testing.B, vg *VG) {
		var text []byte
		for i := 0; b.Loop(); i++ {
			next := vg.Clone()
			lv := vg.LVs[i%len(vg.LVs)].Clone()
			lv.Tags = append(lv.Tags, "x")
			if err := next.Replace(lv); err != nil {
				b.Fatal(err)
			}
			if err := next.Validate(); err != nil {
				b.Fatal(err)
			}
			text = next.appendText(text[:0], 2, Stamp{})
		}
	})
}

func BenchmarkFree(b *testing.B) {
	benchSizes(b, func(b *testing.B, vg *VG) {
		for b.Loop() {
			vg.Free()
		}
	})
}

func BenchmarkReadUnchanged(b *testing.B) {
	s := createVG(b, testHost(b), blankDisks(b, 1, diskSize), CreateOptions{})
	for b.Loop() {
		read(b, s)
	}
}

func BenchmarkLock(b *testing.B) {
	h := testHost(b)
	for b.Loop() {
		l, err := h.LockVG(context.Background(), "vg", Exclusive)
		if err != nil {
			b.Fatal(err)
		}
		l.Unlock()
	}
}
