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

// TestFindVG_trust: metadata on devices that were not chosen counts only for
// the physical volumes that the chosen devices name.
func TestFindVG_trust(t *testing.T) {
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
