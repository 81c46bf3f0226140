//go:build !kernel

package lvm2

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestStore_metadataAreas: a Store uses second areas, and does not use ignored
// areas until they are in use again.
func TestStore_metadataAreas(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 3, diskSize)
	s := createVG(t, h, disks, CreateOptions{})
	edit(t, s, addLV("a", 0, 0, 1))
	s.Close()
	// The first disk gets a second area at its end, the second disk has no area, and
	// the area of the third disk is ignored.
	second := region{63 * size.MiB, size.MiB}
	relabel(t, disks[0], func(l *label) { l.metadata = append(l.metadata, second) })
	overwrite(t, disks[0], int64(second.offset), mdaHeader{start: second.offset, size: second.size}.encode())
	relabel(t, disks[1], func(l *label) { l.metadata = nil })
	rehead(t, disks[2], func(h *mdaHeader) { h.committed.flags = slotIgnored })
	ignored := string(content(t, disks[2], 4096, 512))

	s = openVG(t, h, disks)
	if vg := edit(t, s, addLV("b", 1, 0, 1)); vg.PVs[1].Device != disks[1] {
		t.Errorf("the physical volume without metadata is %+v", vg.PVs[1])
	}
	if string(content(t, disks[2], 4096, 512)) != ignored {
		t.Error("the ignored area was written")
	}
	// The new area alone must be enough.
	overwrite(t, disks[0], 4096, make([]byte, 512))
	if got := read(t, openVG(t, h, disks)); names(got) != "a b" {
		t.Errorf("the second area has %s", names(got))
	}
	rehead(t, disks[2], func(h *mdaHeader) { h.committed.flags = 0 })
	s = openVG(t, h, disks)
	if got := read(t, s); names(got) != "a b" {
		t.Errorf("the old area, which is in use again, was read: %s", names(got))
	}
	edit(t, s, addLV("c", 1, 1, 1))
	if h := header(t, disks[2]); h.committed.size != s.vg.source.size {
		t.Error("the area in use again was not written")
	}
}

// TestRead_noAreaInUse: a volume group whose only area is ignored is not found.
func TestRead_noAreaInUse(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 1, diskSize)
	s := createVG(t, h, disks, CreateOptions{})
	rehead(t, disks[0], func(h *mdaHeader) { h.committed.flags = slotIgnored })
	if _, err := s.Read(context.Background()); !errors.Is(err, ErrNotFound) {
		t.Errorf("only an ignored area: %v", err)
	}
}

// TestFindVGReadOnly_commit: a Store of FindVGReadOnly cannot commit.
func TestFindVGReadOnly_commit(t *testing.T) {
	ctx := context.Background()
	h, disks := testHost(t), blankDisks(t, 2, 64*size.MiB)
	s := createVG(t, h, disks, CreateOptions{})
	r, err := FindVGReadOnly(ctx, h, "vg", fixed(disks))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	vg := read(t, r).Clone()
	vg.Tags = append(vg.Tags, "new")
	if err := r.Commit(ctx, vg); err == nil {
		t.Error("a read-only Store has committed")
	}
	if got := read(t, s); len(got.Tags) != 0 {
		t.Errorf("the group has tags %v", got.Tags)
	}
}

// TestRead_olderCopyOfDisk: an open volume group does not go back to an older
// copy of the disk on another device.
func TestRead_olderCopyOfDisk(t *testing.T) {
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
		t.Error("the disk is not used again")
	}
}

// TestRead_missingDevices: a Store looks for missing devices less and less
// often, and immediately when the devices change.
func TestRead_missingDevices(t *testing.T) {
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
			t.Fatal("the missing disk was found")
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
		t.Error("the disk has returned, but was not found")
	}
}
