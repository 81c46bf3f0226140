//go:build !kernel

package lvm2

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The tests without a kernel use sparse files as disks. They are not built into the
// kernel tests, which would only run them again, more slowly.

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

// present gives each physical volume a device, as in an open volume group.
func present(vg *VG) *VG {
	for _, pv := range vg.PVs {
		pv.Device = pv.hint
	}
	return vg
}

func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// atSector returns the first four sectors of a device, with a label in sector n.
func atSector(n int, sector []byte) []byte {
	return append(append(make([]byte, n*size.SectorBytes), sector...), make([]byte, (labelSectors-1-n)*size.SectorBytes)...)
}

// overwrite writes b to a disk, without this package.
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

// flip damages a byte of a disk.
func flip(t testing.TB, path string, at int64) {
	t.Helper()
	b := content(t, path, at, 1)
	b[0] ^= 0x20
	overwrite(t, path, at, b)
}

func header(t testing.TB, path string) mdaHeader {
	t.Helper()
	b := content(t, path, 4096, mdaHeaderSize)
	h, err := decodeMDAHeader(b, region{4096, size.Bytes(binary.LittleEndian.Uint64(b[32:]))})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func rehead(t testing.TB, path string, change func(*mdaHeader)) {
	t.Helper()
	h := header(t, path)
	change(&h)
	overwrite(t, path, 4096, h.encode())
}

func relabel(t testing.TB, path string, change func(*label)) {
	t.Helper()
	l, err := findLabel(content(t, path, 0, labelSectors*size.SectorBytes))
	if err != nil || l == nil {
		t.Fatal(l, err)
	}
	change(l)
	overwrite(t, path, labelSector*size.SectorBytes, l.encode())
}

func textStart(t testing.TB, path string) int64 {
	return 4096 + int64(header(t, path).committed.offset)
}

// force writes a volume group that Commit would refuse.
func force(t testing.TB, s *Store, vg *VG) {
	t.Helper()
	w, err := newWriter(s.host, vg, s.areas, nil)
	if err == nil {
		_, err = w.write()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func setKey(vg *VG, key, value string) { vg.keys = append(vg.keys, entry{key, key + " = " + value}) }

const diskSize = 64 * size.MiB

// foreign has keys at every level, a section, segment types and nested lists that
// this package does not know.
const foreign = `contents = "Text Format Volume Group"
version = 1
future_top = [ "x", 1.5 ]
description = "old"
vg {
	id = "FZS26V-gx1w-TkLg-pfHT-ADnp-Alql-qv1kNy"
	seqno = 6
	format = "lvm2"			# informational
	status = ["RESIZEABLE", "READ", "WRITE"]
	future_key = 3.250000
	extent_size = 8192		# 4 Megabytes
	max_lv = 0
	max_pv = 0
	allocation_policy = "cling"
	physical_volumes {
		pv0 {
			id = "T30zZb-RGqV-1fV4-lKGc-7niM-YBIK-rpRc4k"
			device = "/dev/ubda"
			device_id = "naa.5"
			status = ["ALLOCATABLE"]
			pe_start = 2048
			pe_count = 1000
			ba_start = 2048
		}
		pv1 {
			id = "T30zZb-RGqV-1fV4-lKGc-7niM-YBIK-rpRc4l"
			status = []
			pe_start = 2048
			pe_count = 1000
		}
	}
	logical_volumes {
		ours {
			id = "Ged0gf-Vxy1-HNWE-3wg9-7N6C-STCv-hmC3O0"
			status = ["READ", "WRITE", "VISIBLE"]
			creation_time = 1795329550
			creation_host = "h"
			read_ahead = -1
			future = [ ]
			segment_count = 2
			b {
				start_extent = 16
				extent_count = 4
				type = "striped"
				stripe_count = 1
				stripes = [ "pv0", 100 ]
			}
			a {
				start_extent = 0
				extent_count = 16
				tags = ["segtag"]
				type = "striped"
				stripe_count = 1
				stripes = [ "pv0", 0 ]
			}
		}
		alien {
			id = "Ged0gf-Vxy1-HNWE-3wg9-7N6C-STCv-hmC3O1"
			status = ["READ", "WRITE", "VISIBLE"]
			segment_count = 1
			segment1 {
				start_extent = 0
				extent_count = 10
				type = "magic+FLAG"
				magic_key = 77
				float = 1.500000
				nested { areas = [ "pv0", 200, "other", 5, "pv0", 300 ] }
			}
		}
		merge { id = "Ged0gf-Vxy1-HNWE-3wg9-7N6C-STCv-hmC3O2" status = ["READ", "WRITE"] segment_count = 1
			segment1 { start_extent = 0 extent_count = 20 type = "snapshot" chunk_size = 8 origin = "o" merging_store = "s" } }
		o { id = "Ged0gf-Vxy1-HNWE-3wg9-7N6C-STCv-hmC3O3" status = ["READ", "WRITE", "VISIBLE"] segment_count = 1
			segment1 { start_extent = 0 extent_count = 20 type = "striped" stripe_count = 1 stripes = ["pv0", 400] } }
		s { id = "Ged0gf-Vxy1-HNWE-3wg9-7N6C-STCv-hmC3O4" status = ["READ", "WRITE"] segment_count = 1
			segment1 { start_extent = 0 extent_count = 20 type = "striped" stripe_count = 1 stripes = ["pv0", 420] } }
		moved { id = "Ged0gf-Vxy1-HNWE-3wg9-7N6C-STCv-hmC3O5" status = ["READ", "WRITE", "VISIBLE", "LOCKED"] segment_count = 1
			segment1 { start_extent = 0 extent_count = 20 type = "striped" stripe_count = 1 stripes = ["s", 0] } }
	}
	historical_logical_volumes { gone { id = "Ged0gf-Vxy1-HNWE-3wg9-7N6C-STCv-hmC3O9" creation_time = 1 } }
}
future_section { k = 1 }
`
