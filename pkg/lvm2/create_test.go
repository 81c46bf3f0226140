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

// small is for disks of 2 MiB.
var small = CreateOptions{MetadataSize: 14 * size.KiB, DataAlignment: 4 * size.KiB, ExtentSize: 64 * size.KiB}

// everyCrash runs attempt with a crash at its every write and flush.
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

// A crash of CreateVG leaves a volume group, or devices with which the same call
// goes on.
func TestCreateCrash(t *testing.T) {
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

// A crash of Extend leaves the volume group as it was, or extended; the same
// call goes on.
func TestExtendCrash(t *testing.T) {
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

func TestExtend(t *testing.T) {
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

func TestCreateRefuses(t *testing.T) {
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
	// What pvcreate made is somebody's; what is committed elsewhere too.
	relabel(t, disks[2], func(l *label) { l.used = false })
	rehead(t, disks[2], func(h *mdaHeader) { h.committed = slot{} })
	if err := CreateVG(ctx, h, "x", disks[2:], CreateOptions{}); !errors.Is(err, ErrNotBlank) {
		t.Errorf("a physical volume that was not ours to begin: %v", err)
	}
}

// A device on which only the preparation of a volume group is left belongs to it
// if the commit took place on another device.
func TestCreateKeepsHalfCommitted(t *testing.T) {
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

func TestDevicesFile(t *testing.T) {
	h := testHost(t)
	h.DevicesFile = filepath.Join(t.TempDir(), "system.devices")
	disks := blankDisks(t, 3, diskSize)
	createVG(t, h, disks[:1], CreateOptions{})
	if _, err := os.Stat(h.DevicesFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a devices file was made: lvm2 would use no others from now on (%v)", err)
	}
	others := "IDTYPE=sys_wwid IDNAME=x DEVNAME=" + disks[1] + " PVID=old PART=1\nIDTYPE=devname IDNAME=/dev/sdz DEVNAME=/dev/sdz PVID=other\n"
	text := "# LVM uses devices listed in this file.\nVERSION=1.1.7\nIDTYPE=devname IDNAME=" + disks[1] + " DEVNAME=" + disks[1] + " PVID=old\n" + others
	if err := os.WriteFile(h.DevicesFile, []byte(strings.TrimSuffix(text, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CreateVG(context.Background(), h, "two", disks[1:], CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	found, err := Scan(context.Background(), disks)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(h.DevicesFile)
	want := "# LVM uses devices listed in this file.\nVERSION=1.1.8\n" + others
	for i, d := range disks[1:] {
		want += "IDTYPE=devname IDNAME=" + d + " DEVNAME=" + d + " PVID=" + string(found[i+1].PV) + "\n"
	}
	if err != nil || string(got) != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
	}
	for i, want := range []bool{false, true, true} {
		if got, err := h.Entered(disks[i], found[i].PV); got != want || err != nil {
			t.Errorf("disk %d is entered: %v, %v", i, got, err)
		}
	}
	if _, err := appendDevices("VERSION=2.0.0\n", nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a newer version: %v", err)
	}
}

func TestScan(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 4, diskSize)
	createVG(t, h, disks[:2], CreateOptions{})
	relabel(t, disks[1], func(l *label) { l.metadata = nil })
	overwrite(t, disks[2], 512, append([]byte("LABELONE\x01\x00\x00\x00\x00\x00\x00\x00wrong   LVM2 001"), make([]byte, 100)...))
	got, err := Scan(context.Background(), append(disks, "/nonexistent"))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		vg  string
		pv  bool
		err error
	}{{"vg", true, nil}, {"vg", true, nil}, {"", false, ErrDamaged}, {"", false, nil}, {"", false, os.ErrNotExist}} {
		if got[i].VG != want.vg || (got[i].PV != "") != want.pv || !errors.Is(got[i].Err, want.err) || (got[i].VGID != "") != (want.vg != "") {
			t.Errorf("%d: %+v, want %+v", i, got[i], want)
		}
		if i < 4 && got[i].Size != diskSize {
			t.Errorf("%d: size %v", i, got[i].Size)
		}
	}
	if !strings.Contains(got[2].Err.Error(), disks[2]) {
		t.Errorf("the error names no device: %v", got[2].Err)
	}
}
