package lvm2

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

func read(t testing.TB, s *Store) *VG {
	t.Helper()
	vg, err := s.Read(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return vg
}

// edit commits a change of the volume group on disk.
func edit(t testing.TB, s *Store, change func(*VG) error) *VG {
	t.Helper()
	vg := read(t, s).Clone()
	if err := change(vg); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(context.Background(), vg); err != nil {
		t.Fatal(err)
	}
	return vg
}

func addLV(name string, pv int, start, count Extents) func(*VG) error {
	return func(vg *VG) error { return vg.Add(linearLV(name, pv, start, count)) }
}

func linearLV(name string, pv int, start, count Extents) *LV {
	return &LV{
		Name: name, ID: NewID(), Status: []string{StatusRead, StatusWrite, StatusVisible},
		CreationTime: time.Unix(1700000000, 0), CreationHost: "test",
		Segments: []Segment{{Count: count, Type: TypeStriped, Stripes: []Stripe{{PV: pv, Start: start}}}},
	}
}

// errorLV returns a logical volume of n extents that uses no extents of a PV.
func errorLV(name string, n Extents) *LV {
	lv := linearLV(name, 0, 0, 0)
	lv.Segments = []Segment{{Count: n, Type: TypeError}}
	lv.Status = []string{StatusRead, StatusVisible}
	lv.Flags = []string{FlagActivationSkip, FlagNoAutoActivate}
	return lv
}

func names(vg *VG) string {
	var list []string
	for _, lv := range vg.LVs {
		list = append(list, lv.Name)
	}
	return strings.Join(list, " ")
}

func content(t testing.TB, path string, at int64, n int) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	return b
}
