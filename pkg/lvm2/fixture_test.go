package lvm2

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The tests of this package that need no kernel use sparse files as disks.

func testHost(t testing.TB) Host {
	dir := t.TempDir()
	return Host{LockDir: filepath.Join(dir, "lock"), Hints: filepath.Join(dir, "hints"), Hostname: "test"}
}

func blankDisks(t testing.TB, n int, length size.Bytes) []string {
	t.Helper()
	dir := t.TempDir()
	paths := make([]string, n)
	for i := range paths {
		paths[i] = filepath.Join(dir, fmt.Sprintf("disk%d", i))
		f, err := os.Create(paths[i])
		if err == nil {
			err = f.Truncate(int64(length))
			f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

func createVG(t testing.TB, h Host, disks []string, o CreateOptions) *Store {
	t.Helper()
	if err := CreateVG(context.Background(), h, "vg", disks, o); err != nil {
		t.Fatal(err)
	}
	return openVG(t, h, disks)
}

func openVG(t testing.TB, h Host, disks []string) *Store {
	t.Helper()
	s, err := OpenVG(context.Background(), h, "vg", disks)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func read(t testing.TB, s *Store) *VG {
	t.Helper()
	vg, err := s.Read(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return vg
}

// edit commits a change of what is on disk.
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

func parseFile(t testing.TB, name string) *VG {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, string(text))
}

func parse(t testing.TB, text string) *VG {
	t.Helper()
	vg, err := ParseVG([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return vg
}

func names(vg *VG) string {
	var list []string
	for _, lv := range vg.LVs {
		list = append(list, lv.Name)
	}
	return strings.Join(list, " ")
}

// overwrite puts bytes into a disk behind the package's back.
func overwrite(t testing.TB, path string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
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
