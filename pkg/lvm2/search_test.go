//go:build !kernel

package lvm2

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

func searched(devices, others []string) Search {
	s := Search{Others: func() ([]string, error) { return others, nil }}
	if devices != nil {
		s.Devices = func() ([]string, error) { return devices, nil }
	}
	return s
}

// Content of devices that nobody chose counts only for the physical volumes that
// the metadata on the chosen ones names.
func TestSearch(t *testing.T) {
	ctx := context.Background()
	setup := func(t *testing.T) (Host, []string) {
		h, disks := testHost(t), blankDisks(t, 3, 64*size.MiB)
		createVG(t, h, disks[:2], CreateOptions{})
		return h, disks
	}
	twin := func(t *testing.T, from, to string) {
		overwrite(t, to, 0, content(t, from, 0, int(40*size.MiB)))
	}
	t.Run("a member elsewhere", func(t *testing.T) {
		h, disks := setup(t)
		s, err := FindVG(ctx, h, "vg", searched(disks[:1], disks))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if vg := read(t, s); vg.PVs[1].Device != disks[1] {
			t.Errorf("the second physical volume is on %q", vg.PVs[1].Device)
		}
	})
	t.Run("a copy elsewhere, with later metadata", func(t *testing.T) {
		h, disks := setup(t)
		twin(t, disks[0], disks[2])
		forged := openVG(t, h, []string{disks[2], disks[1]})
		edit(t, forged, addLV("forged", 0, 0, 1))
		overwrite(t, disks[1], 4096, make([]byte, 512)) // so that only the copy has it
		s, err := FindVG(ctx, h, "vg", searched(disks[:1], disks))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if vg := read(t, s); vg.LV("forged") != nil || vg.PVs[0].Device != disks[0] {
			t.Errorf("the copy was believed: %s on %s", names(vg), vg.PVs[0].Device)
		}
	})
	t.Run("two of the name", func(t *testing.T) {
		h, disks := setup(t)
		createVG(t, h, disks[2:], CreateOptions{})
		if _, err := FindVG(ctx, h, "vg", searched(nil, disks)); !errors.Is(err, ErrDuplicateVG) {
			t.Errorf("nothing is chosen: %v", err)
		}
		for _, chosen := range []string{disks[1], disks[2]} {
			s, err := FindVG(ctx, h, "vg", searched([]string{chosen}, disks))
			if err != nil {
				t.Fatal(err)
			}
			byDevice := read(t, s).ID
			s.Close()
			search := searched(nil, disks)
			search.IDs = []ID{NewID(), byDevice}
			if s, err = FindVG(ctx, h, "vg", search); err != nil {
				t.Fatal(err)
			}
			if got := read(t, s).ID; got != byDevice {
				t.Errorf("found %v, want %v", got, byDevice)
			}
			s.Close()
		}
	})
	t.Run("none of the ids", func(t *testing.T) {
		h, disks := setup(t)
		search := searched(nil, disks)
		search.IDs = []ID{NewID()}
		if _, err := FindVG(ctx, h, "vg", search); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "unexpected id") {
			t.Error(err)
		}
	})
	t.Run("not listed", func(t *testing.T) {
		h, disks := setup(t)
		first := openVG(t, h, disks)
		pv := read(t, first).PVs[0].ID
		h.DevicesFile = filepath.Join(t.TempDir(), "system.devices")
		write := func(line string) {
			if err := os.WriteFile(h.DevicesFile, []byte("VERSION=1.1.2\n"+line+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		search := searched(nil, disks)
		search.Listed = h.Listed
		if s, err := FindVG(ctx, h, "vg", search); err != nil {
			t.Errorf("without a devices file: %v", err)
		} else {
			s.Close()
		}
		write("IDTYPE=devname IDNAME=/dev/x DEVNAME=/dev/x PVID=" + string(NewID()))
		if _, err := FindVG(ctx, h, "vg", search); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "lvmdevices") {
			t.Errorf("none is listed: %v", err)
		}
		for _, line := range []string{
			"IDTYPE=sys_wwid IDNAME=naa.5000 DEVNAME=/dev/x PVID=" + string(pv) + " PART=1",
			"IDTYPE=devname IDNAME=" + disks[0] + " DEVNAME=" + disks[0] + " PVID=.",
		} {
			write(line)
			s, err := FindVG(ctx, h, "vg", search)
			if err != nil {
				t.Fatal(err)
			}
			if vg := read(t, s); vg.PVs[0].Device != disks[0] || vg.PVs[1].Device != "" {
				t.Errorf("listed is %s: found %q and %q", line, vg.PVs[0].Device, vg.PVs[1].Device)
			}
			s.Close()
		}
	})
}

func TestDevicesFileOfConfiguration(t *testing.T) {
	for _, c := range []struct{ main, local, want string }{
		{"", "", "system.devices"},
		{"devices {\n\t# use_devicesfile = 0\n}", "", "system.devices"},
		{"devices {\n\tuse_devicesfile = 0\n}", "", ""},
		{"devices {\n\tuse_devicesfile=1\n\tdevicesfile = \"mine.devices\"\n}", "", "mine.devices"},
		{"devices/use_devicesfile=1", "devices { \n use_devicesfile = 0\n}", ""},
	} {
		dir := t.TempDir()
		for name, text := range map[string]string{"lvm.conf": c.main, "lvmlocal.conf": c.local} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want := c.want
		if want != "" {
			want = filepath.Join(dir, "devices", want)
		}
		if got := DevicesFile(dir); got != want {
			t.Errorf("%q and %q: %q, want %q", c.main, c.local, got, want)
		}
	}
}

func TestGroupOfDM(t *testing.T) {
	for _, c := range [][2]string{{"vg", "a"}, {"vg-fast", "pvc-1"}, {"a--b", "c--d"}, {"vg-", "lv"}} {
		if got := groupOfDM(DMName(c[0], c[1], "")); got != c[0] {
			t.Errorf("group of %v: %q", c, got)
		}
	}
}

// A physical volume that is on another device than before is an earlier copy of
// the disk if its metadata is older; an open volume group does not go back to that.
func TestOlderCopyInPlace(t *testing.T) {
	h, disks := testHost(t), blankDisks(t, 2, 64*size.MiB)
	createVG(t, h, disks[:1], CreateOptions{})
	s := openVG(t, h, disks[:1])
	overwrite(t, disks[1], 0, content(t, disks[0], 0, int(64*size.MiB)))
	edit(t, s, addLV("later", 0, 0, 1))
	kept := disks[0] + ".kept"
	for _, move := range [][2]string{{disks[0], kept}, {disks[1], disks[0]}} {
		if err := os.Rename(move[0], move[1]); err != nil {
			t.Fatal(err)
		}
	}
	s.Close() // as after an error
	if _, err := s.Read(context.Background()); !errors.Is(err, ErrDamaged) {
		t.Fatalf("the copy is read: %v", err)
	}
	if err := os.Rename(kept, disks[0]); err != nil {
		t.Fatal(err)
	}
	if vg := read(t, s); vg.LV("later") == nil {
		t.Error("the disk is not taken back")
	}
}

// Missing devices are looked for ever less often, and when others are there.
func TestHunt(t *testing.T) {
	h, disks := testHost(t), blankDisks(t, 2, 64*size.MiB)
	createVG(t, h, disks, CreateOptions{})
	away := disks[1] + ".away"
	if err := os.Rename(disks[1], away); err != nil {
		t.Fatal(err)
	}
	looks, seen := 0, "one"
	search := searched(nil, nil)
	search.Others = func() ([]string, error) { looks++; return disks, nil }
	search.Seen = func() string { return seen }
	s, err := FindVG(context.Background(), h, "vg", search)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before := looks
	for range 5 {
		if vg := read(t, s); vg.PVs[1].Device != "" {
			t.Fatal("the disk that is away was found")
		}
	}
	if looks > before+1 { // a slow machine takes longer than the first pause
		t.Errorf("%d looks at the same devices", looks-before)
	}
	if err := os.Rename(away, disks[1]); err != nil {
		t.Fatal(err)
	}
	seen = "two"
	if vg := read(t, s); vg.PVs[1].Device != disks[1] {
		t.Error("the disk is there, and was not found")
	}
}
