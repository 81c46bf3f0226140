//go:build !kernel

package lvm2

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestOpenVG_onlyCopyDamaged: damage to the only copy is an error that names
// the device, and CreateVG does not use the device.
func TestOpenVG_onlyCopyDamaged(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, disk string)
		want   error
	}{
		{"label", func(t *testing.T, disk string) { flip(t, disk, 512+40) }, ErrDamaged},
		{"label checksum", func(t *testing.T, disk string) { flip(t, disk, 512+16) }, ErrDamaged},
		{"header checksum", func(t *testing.T, disk string) { flip(t, disk, 4096) }, ErrDamaged},
		{"header magic", func(t *testing.T, disk string) { flip(t, disk, 4096+5) }, ErrDamaged},
		{"header slot", func(t *testing.T, disk string) { flip(t, disk, 4096+48) }, ErrDamaged},
		{"header gone", func(t *testing.T, disk string) { overwrite(t, disk, 4096, make([]byte, 512)) }, ErrDamaged},
		{"text, first byte", func(t *testing.T, disk string) { flip(t, disk, textStart(t, disk)) }, ErrDamaged},
		{"text, middle", func(t *testing.T, disk string) { flip(t, disk, textStart(t, disk)+300) }, ErrDamaged},
		{"text, last byte", func(t *testing.T, disk string) {
			flip(t, disk, textStart(t, disk)+int64(header(t, disk).committed.size)-1)
		}, ErrDamaged},
		{"text gone", func(t *testing.T, disk string) { overwrite(t, disk, textStart(t, disk), make([]byte, 4096)) }, ErrDamaged},
		{"slot outside", func(t *testing.T, disk string) {
			rehead(t, disk, func(h *mdaHeader) { h.committed.offset = h.size })
		}, ErrDamaged},
		{"slot longer than the area", func(t *testing.T, disk string) {
			rehead(t, disk, func(h *mdaHeader) { h.committed.size = h.size })
		}, ErrDamaged},
		{"no text", func(t *testing.T, disk string) { rehead(t, disk, func(h *mdaHeader) { h.committed = slot{} }) }, ErrNotFound},
		{"area beyond the device", func(t *testing.T, disk string) {
			relabel(t, disk, func(l *label) { l.metadata[0].offset = 10 * size.GiB })
		}, ErrDamaged},
		{"device cut off", func(t *testing.T, disk string) {
			if err := os.Truncate(disk, 4096); err != nil {
				t.Fatal(err)
			}
		}, ErrDamaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := testHost(t)
			disks := blankDisks(t, 1, diskSize)
			s := createVG(t, h, disks, CreateOptions{})
			edit(t, s, addLV("a", 0, 0, 1))
			c.damage(t, disks[0])
			_, err := OpenVG(context.Background(), h, "vg", disks)
			if !errors.Is(err, c.want) {
				t.Errorf("open: %v, want %v", err, c.want)
			}
			if c.want == ErrDamaged && !strings.Contains(err.Error(), disks[0]) {
				t.Errorf("the error does not name the device: %v", err)
			}
			if err := CreateVG(context.Background(), h, "vg", disks, CreateOptions{}); !errors.Is(err, ErrNotBlank) && !errors.Is(err, ErrTooSmall) && c.name != "no text" {
				t.Errorf("create over it: %v", err)
			}
		})
	}
}

// TestOpenVG_oneCopyDamaged: with another good copy, damage is a problem, and
// the next commit repairs a text but not a header.
func TestOpenVG_oneCopyDamaged(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, disk string)
		mended bool
	}{
		{"text", func(t *testing.T, disk string) { flip(t, disk, textStart(t, disk)+300) }, true},
		{"text checksum", func(t *testing.T, disk string) { rehead(t, disk, func(h *mdaHeader) { h.committed.crc++ }) }, true},
		{"header", func(t *testing.T, disk string) { flip(t, disk, 4096+48) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := testHost(t)
			disks := blankDisks(t, 2, diskSize)
			s := createVG(t, h, disks, CreateOptions{})
			edit(t, s, addLV("a", 0, 0, 1))
			c.damage(t, disks[1])
			before := string(content(t, disks[1], 4096, 512))
			for _, s := range []*Store{s, openVG(t, h, disks)} {
				if got := read(t, s); names(got) != "a" {
					t.Errorf("read %s", names(got))
				}
				if p := s.Problems(); c.name != "text" && (len(p) != 1 || !errors.Is(p[0], ErrDamaged) || !strings.Contains(p[0].Error(), disks[1])) {
					t.Errorf("problems %v", p)
				}
			}
			s = openVG(t, h, disks)
			next := edit(t, s, addLV("b", 0, 1, 1))
			if mended := len(s.Problems()) == 0; mended != c.mended {
				t.Errorf("after a commit: %v", s.Problems())
			}
			if !c.mended && string(content(t, disks[1], 4096, 512)) != before {
				t.Error("a damaged header was overwritten")
			}
			if c.mended && header(t, disks[1]).committed.crc != next.source.crc {
				t.Error("the text was not repaired")
			}
		})
	}
}

// TestOpenVG_contradictions: contradicting metadata is resolved only if it is
// certain which metadata is current.
func TestOpenVG_contradictions(t *testing.T) {
	ctx := context.Background()
	h := testHost(t)
	// setup returns two disks of which the second has older metadata.
	setup := func(t *testing.T) []string {
		disks := blankDisks(t, 2, diskSize)
		s := createVG(t, h, disks, CreateOptions{})
		old := header(t, disks[1])
		edit(t, s, addLV("a", 0, 0, 1))
		rehead(t, disks[1], func(h *mdaHeader) { *h = old })
		return disks
	}
	t.Run("older copy", func(t *testing.T) {
		s := openVG(t, h, setup(t))
		if p := s.Problems(); names(read(t, s)) != "a" || len(p) != 1 {
			t.Errorf("%s, %v", names(read(t, s)), p)
		}
	})
	t.Run("newest only where the metadata says", func(t *testing.T) {
		if got := read(t, openVG(t, h, setup(t)[1:])); got.Seqno != 2 || names(got) != "a" {
			t.Errorf("seqno %d with %s", got.Seqno, names(got))
		}
	})
	t.Run("newest damaged", func(t *testing.T) {
		disks := setup(t)
		flip(t, disks[0], textStart(t, disks[0])+500)
		if _, err := OpenVG(ctx, h, "vg", disks); !errors.Is(err, ErrDamaged) {
			t.Errorf("%v: the older copy must not be used", err)
		}
	})
	t.Run("newest unreadable later", func(t *testing.T) {
		disks := setup(t)
		s := openVG(t, h, disks)
		overwrite(t, disks[0], 4096, make([]byte, 512))
		for range 2 {
			if _, err := s.Read(ctx); !errors.Is(err, ErrDamaged) {
				t.Errorf("%v: seqno went back", err)
			}
		}
	})
	t.Run("same seqno, other text", func(t *testing.T) {
		disks := setup(t)
		b := content(t, disks[0], 4096, int(size.MiB))
		old := header(t, disks[0])
		text := b[old.committed.offset:][:old.committed.size]
		text[len(text)-4]++ // in the time
		overwrite(t, disks[1], 4096, b)
		rehead(t, disks[1], func(h *mdaHeader) { h.committed.crc = checksum(text) })
		if _, err := OpenVG(ctx, h, "vg", disks); !errors.Is(err, ErrDamaged) {
			t.Errorf("%v", err)
		}
	})
	t.Run("same name", func(t *testing.T) {
		a, b := setup(t), blankDisks(t, 1, diskSize)
		createVG(t, h, b, CreateOptions{})
		if _, err := OpenVG(ctx, h, "vg", append(a, b...)); !errors.Is(err, ErrDuplicateVG) {
			t.Errorf("%v", err)
		}
	})
	t.Run("same physical volume", func(t *testing.T) {
		disks := setup(t)
		twin := blankDisks(t, 1, diskSize)
		overwrite(t, twin[0], 0, content(t, disks[0], 0, int(diskSize)))
		if _, err := OpenVG(ctx, h, "vg", append(disks, twin...)); !errors.Is(err, ErrDuplicatePV) {
			t.Errorf("%v", err)
		}
		link := twin[0] + "link"
		if err := os.Symlink(disks[0], link); err != nil {
			t.Fatal(err)
		}
		if s := openVG(t, h, append(disks, link, disks[0])); names(read(t, s)) != "a" {
			t.Error("a device with two names must not be a duplicate")
		}
	})
	t.Run("of another group", func(t *testing.T) {
		disks := setup(t)
		twin := blankDisks(t, 1, diskSize)
		createVG(t, h, twin, CreateOptions{})
		id := openVG(t, h, disks).vg.PVs[1].ID
		relabel(t, twin[0], func(l *label) { l.id = id })
		if _, err := OpenVG(ctx, h, "vg", []string{disks[0], twin[0]}); err == nil {
			t.Error("a physical volume with the metadata of another group was accepted")
		}
	})
	t.Run("renamed", func(t *testing.T) {
		disks := setup(t)
		s := openVG(t, h, disks)
		vg := read(t, s).Clone()
		vg.Name = "renamed"
		s.areas = s.areas[:1]
		force(t, s, vg)
		// One disk still has the old name, as after an interrupted vgrename.
		if _, err := OpenVG(ctx, h, "vg", disks); !errors.Is(err, ErrNotFound) {
			t.Errorf("by its old name: %v", err)
		}
		s, err := OpenVG(ctx, h, "renamed", disks)
		if err != nil {
			t.Fatal(err)
		}
		edit(t, s, addLV("b", 0, 5, 1))
		s.Close()
		if header(t, disks[1]).committed.crc != header(t, disks[0]).committed.crc {
			t.Error("the disk with the old name was not updated")
		}
	})
}

// TestOpenVG_missingPV: a volume group with a missing device can be read but
// not committed, until the device returns.
func TestOpenVG_missingPV(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 2, diskSize)
	s := createVG(t, h, disks, CreateOptions{})
	edit(t, s, addLV("a", 1, 0, 1))
	s.Close()
	if err := os.Rename(disks[1], disks[1]+".gone"); err != nil {
		t.Fatal(err)
	}
	s = openVG(t, h, disks)
	vg := read(t, s)
	if names(vg) != "a" || vg.PVs[1].Device != "" || !vg.PVs[1].Missing() || len(s.Problems()) != 1 {
		t.Errorf("%s on %+v, problems %v", names(vg), vg.PVs[1], s.Problems())
	}
	if free := vg.Free(); len(free) != 1 || free[0].PV != 0 {
		t.Errorf("free %v", free)
	}
	if read(t, s) != vg {
		t.Error("reading again gave another VG though nothing changed")
	}
	next := vg.Clone()
	if err := next.Add(linearLV("b", 0, 0, 1)); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(context.Background(), next); !errors.Is(err, ErrMissingPV) || !strings.Contains(err.Error(), disks[1]) {
		t.Errorf("commit: %v", err)
	}
	if err := os.Rename(disks[1]+".gone", disks[1]); err != nil {
		t.Fatal(err)
	}
	edit(t, s, addLV("b", 1, 1, 1))
	if p := s.Problems(); len(p) > 0 {
		t.Error(p)
	}
}
