//go:build !kernel

package lvm2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// small are options for disks of 2 MiB.
var small = CreateOptions{MetadataSize: 14 * size.KiB, DataAlignment: 4 * size.KiB, ExtentSize: 64 * size.KiB}

// everyCrash runs attempt with a crash at each of its writes and flushes.
func everyCrash(t *testing.T, atLeast int, attempt func(t *testing.T, name string, f *faults)) {
	for n := 1; ; n++ {
		for _, kind := range []fault{crashBefore, crashInside, crashAfter} {
			f := &faults{n: n, kind: kind}
			attempt(t, fmt.Sprintf("%s, step %d", kind, n), f)
			if f.done {
				continue
			}
			if n <= atLeast {
				t.Errorf("there are only %d writes and flushes", n-1)
			}
			return
		}
	}
}

func (f *freshDisks) inject(faults *faults) {
	for _, d := range f.devices {
		d.file = &faultyFile{d.file, faults}
	}
}

// TestCreateVG_crash: a crash of CreateVG leaves a volume group, or devices
// with which the same call succeeds.
func TestCreateVG_crash(t *testing.T) {
	everyCrash(t, 2*4+2*5, func(t *testing.T, name string, f *faults) {
		h := testHost(t)
		disks := blankDisks(t, 2, 2*size.MiB)
		vg := newVG("vg", uint64(small.ExtentSize.Sectors()), nil, nil, "")
		fresh, err := prepare(disks, vg, small.MetadataSize, small.DataAlignment)
		if err != nil {
			t.Fatal(err)
		}
		fresh.inject(f)
		err = h.write(context.Background(), vg, fresh)
		fresh.close()
		s, openErr := OpenVG(context.Background(), h, "vg", disks)
		switch {
		case openErr == nil:
		case err == nil || !errors.Is(openErr, ErrNotFound):
			t.Fatalf("%s: CreateVG says %v, OpenVG %v", name, err, openErr)
		default:
			s = createVG(t, h, disks, small)
		}
		defer s.Close()
		if got := edit(t, s, addLV("a", 1, 0, 1)); len(got.PVs) != 2 || len(s.Problems()) > 0 {
			t.Errorf("%s: %d physical volumes, problems %v", name, len(got.PVs), s.Problems())
		}
	})
}

// TestExtend_crash: a crash of Extend leaves the old or the extended volume
// group, and the same call then succeeds.
func TestExtend_crash(t *testing.T) {
	everyCrash(t, 4+2*5, func(t *testing.T, name string, f *faults) {
		h := testHost(t)
		disks := blankDisks(t, 2, 2*size.MiB)
		s := createVG(t, h, disks[:1], small)
		edit(t, s, addLV("a", 0, 0, 1))
		next := read(t, s).Clone()
		fresh, err := prepare(disks[1:], next, s.areas[0].where.size, small.DataAlignment)
		if err != nil {
			t.Fatal(err)
		}
		fresh.inject(f)
		s.inject(f)
		err = s.join(context.Background(), next, fresh)
		fresh.close()
		s.Close()
		s = openVG(t, h, disks)
		vg := read(t, s)
		if names(vg) != "a" || err == nil && len(vg.PVs) != 2 {
			t.Fatalf("%s: Extend says %v, there are %d physical volumes and %s", name, err, len(vg.PVs), names(vg))
		}
		if len(vg.PVs) == 1 {
			if err := s.Extend(context.Background(), disks[1:]); err != nil {
				t.Fatalf("%s: again: %v", name, err)
			}
		}
		if got := edit(t, s, addLV("b", 1, 0, 1)); len(got.PVs) != 2 || len(s.Problems()) > 0 {
			t.Errorf("%s: %d physical volumes, problems %v", name, len(got.PVs), s.Problems())
		}
		s.Close()
	})
}

// TestExtend_addsDevices: Extend adds devices with metadata areas, and a Store
// then finds the volume group from any of them.
func TestExtend_addsDevices(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 3, diskSize)
	s := createVG(t, h, disks[:1], CreateOptions{MetadataSize: 5 * size.MiB})
	edit(t, s, addLV("a", 0, 0, 1))
	if err := s.Extend(context.Background(), disks[1:]); err != nil {
		t.Fatal(err)
	}
	vg := read(t, s)
	if len(vg.PVs) != 3 || vg.Seqno != 3 || vg.PVs[2].Device != disks[2] || vg.PVs[2].PEStart != vg.PVs[0].PEStart || len(vg.Free()) != 3 {
		t.Errorf("extended to %+v", vg)
	}
	edit(t, s, addLV("b", 2, 0, 2))
	if got := read(t, openVG(t, h, disks[1:])); names(got) != "a b" || got.PVs[0].Device != disks[0] {
		t.Errorf("opened by two of three devices: %s, the first is %q", names(got), got.PVs[0].Device)
	}
	if err := s.Extend(context.Background(), disks[2:]); !errors.Is(err, ErrNotBlank) {
		t.Errorf("extend by its own device: %v", err)
	}
}

// TestCreateVG_errors: a refused call writes to no device.
func TestCreateVG_errors(t *testing.T) {
	ctx := context.Background()
	h := testHost(t)
	disks := blankDisks(t, 3, diskSize)
	tiny := blankDisks(t, 1, 22*size.MiB)[0]
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(disks[0], link); err != nil {
		t.Fatal(err)
	}
	createVG(t, h, disks[2:], CreateOptions{})
	swap := blankDisks(t, 1, diskSize)[0]
	overwrite(t, swap, 4086, []byte("SWAPSPACE2"))
	foreign := h
	foreign.SystemID = "here"
	for _, c := range []struct {
		name    string
		vg      string
		devices []string
		o       CreateOptions
		want    error
	}{
		{"no devices", "x", nil, CreateOptions{}, ErrInvalid},
		{"no device there", "x", []string{disks[0], "/nonexistent"}, CreateOptions{}, os.ErrNotExist},
		{"a directory", "x", []string{t.TempDir()}, CreateOptions{}, nil},
		{"twice", "x", []string{disks[0], disks[0]}, CreateOptions{}, ErrInvalid},
		{"twice by a link", "x", []string{disks[0], link}, CreateOptions{}, ErrInvalid},
		{"too small", "x", []string{disks[0], tiny}, CreateOptions{}, ErrTooSmall},
		{"not blank", "x", []string{disks[0], swap}, CreateOptions{}, ErrNotBlank},
		{"in another group", "x", []string{disks[0], disks[2]}, CreateOptions{}, ErrNotBlank},
		{"bad name", "x y", disks[:1], CreateOptions{}, ErrInvalid},
		{"bad tag", "x", disks[:1], CreateOptions{Tags: []string{"a b"}}, ErrInvalid},
		{"bad extent size", "x", disks[:1], CreateOptions{ExtentSize: 3 * size.MiB}, ErrInvalid},
		{"bad alignment", "x", disks[:1], CreateOptions{DataAlignment: 512}, ErrInvalid},
		{"too much metadata", "x", disks[:1], CreateOptions{MetadataSize: 2 * size.GiB}, ErrInvalid},
		{"foreign", "x", disks[:1], CreateOptions{SystemID: "elsewhere"}, ErrForeignSystemID},
	} {
		err := CreateVG(ctx, h, c.vg, c.devices, c.o)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if found, err := Signature(disks[0]); err != nil || found != "" {
		t.Errorf("a refused call left %q on a device (%v)", found, err)
	}
	// A physical volume of pvcreate is not a remnant of CreateVG.
	relabel(t, disks[2], func(l *label) { l.used = false })
	rehead(t, disks[2], func(h *mdaHeader) { h.committed = slot{} })
	if err := CreateVG(ctx, h, "x", disks[2:], CreateOptions{}); !errors.Is(err, ErrNotBlank) {
		t.Errorf("a physical volume of pvcreate: %v", err)
	}
}

// TestCreateVG_halfCommitted: a device with only a prepared text belongs to the
// volume group if another device has the committed text.
func TestCreateVG_halfCommitted(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 2, diskSize)
	s := createVG(t, h, disks, CreateOptions{})
	s.Close()
	committed := header(t, disks[0])
	rehead(t, disks[1], func(h *mdaHeader) { h.committed, h.precommit = slot{}, committed.committed })
	for _, name := range []string{"vg", "other"} {
		if err := CreateVG(context.Background(), h, name, disks[1:], CreateOptions{}); !errors.Is(err, ErrNotBlank) {
			t.Errorf("%s takes a device of vg: %v", name, err)
		}
	}
	if got := read(t, openVG(t, h, disks)); got.PVs[1].Device != disks[1] {
		t.Errorf("%+v", got.PVs[1])
	}
}

// TestCreateVG_readAndCommit: a new volume group can be read and changed by two
// stores, and the hints file is gone.
func TestCreateVG_readAndCommit(t *testing.T) {
	h := testHost(t)
	if err := os.WriteFile(h.Hints, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	disks := blankDisks(t, 2, diskSize)
	s := createVG(t, h, disks, CreateOptions{Tags: []string{"a", "b"}})
	vg := read(t, s)
	if vg.Name != "vg" || vg.Seqno != 1 || len(vg.PVs) != 2 || len(vg.LVs) != 0 || strings.Join(vg.Tags, " ") != "a b" {
		t.Errorf("new volume group %+v", vg)
	}
	if pv := vg.PVs[1]; pv.Device != disks[1] || pv.PEStart.Bytes() != 21*size.MiB || pv.PECount != 10 {
		t.Errorf("second physical volume %+v", pv)
	}
	if read(t, s) != vg {
		t.Error("reading again gave another VG though nothing changed")
	}
	if _, err := os.Stat(h.Hints); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the hints file is still there: %v", err)
	}
	next := edit(t, s, addLV("a", 0, 0, 3))
	if next.Seqno != 2 || read(t, s) != next {
		t.Errorf("seqno %d; the next Read does not return what was committed", next.Seqno)
	}
	next = edit(t, s, addLV("b", 1, 0, 5))
	other := openVG(t, h, disks)
	again := read(t, other)
	if again.Seqno != 3 || names(again) != "a b" || again.LV("b").text != next.LV("b").text {
		t.Errorf("another reader sees seqno %d, %s", again.Seqno, names(again))
	}
	edit(t, other, func(vg *VG) error { return vg.Remove(vg.LV("a").ID) })
	if got := read(t, s); got == next || got.Seqno != 4 || names(got) != "b" {
		t.Errorf("after another writer: seqno %d, %s", got.Seqno, names(got))
	}
	if p := s.Problems(); len(p) > 0 {
		t.Error(p)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, s); got.Seqno != 4 {
		t.Errorf("after Close: seqno %d", got.Seqno)
	}
}

// TestDefaultMetadataSize_10000Volumes: the default metadata area has room for
// 10,000 logical volumes.
func TestDefaultMetadataSize_10000Volumes(t *testing.T) {
	vg := largeVG(t, 10000)
	text := vg.Text(Stamp{})
	if room := (mdaHeader{size: 21*size.MiB - metadataStart}).maxText(); size.Bytes(len(text)) > room {
		t.Errorf("10,000 logical volumes need %d bytes, the default metadata area holds %d", len(text), room)
	}
	if again := parse(t, string(text)); len(again.LVs) != 10000 || again.Validate() != nil || string(again.Text(Stamp{})) != string(text) {
		t.Error("the round trip changed something")
	}
}
