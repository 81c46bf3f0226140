//go:build !kernel

package lvm2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const diskSize = 64 * size.MiB

func TestCreateReadCommit(t *testing.T) {
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

func TestCommitRefuses(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 1, diskSize)
	s := createVG(t, h, disks, CreateOptions{})
	first := read(t, s)
	before := string(content(t, disks[0], 0, int(diskSize)))
	overlap, ended := first.Clone(), first.Clone()
	if err := errors.Join(overlap.Add(linearLV("a", 0, 0, 2)), overlap.Add(linearLV("b", 0, 1, 2))); err != nil {
		t.Fatal(err)
	}
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	old := first.Clone()
	old.Seqno--
	other := first.Clone()
	other.ID = NewID()
	for name, c := range map[string]struct {
		ctx  context.Context
		vg   *VG
		want error
	}{
		"overlap": {context.Background(), overlap, ErrInvalid}, "canceled": {canceled, ended, context.Canceled},
		"an old one": {context.Background(), old, ErrConflict}, "another group": {context.Background(), other, ErrConflict},
	} {
		seqno := c.vg.Seqno
		if err := s.Commit(c.ctx, c.vg); !errors.Is(err, c.want) || c.vg.Seqno != seqno {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if string(content(t, disks[0], 0, int(diskSize))) != before || read(t, s) != first {
		t.Error("a refused commit wrote something")
	}
	// Somebody wrote without a lock, or the caller did not hold one.
	edit(t, openVG(t, h, disks), addLV("x", 0, 0, 1))
	if err := s.Commit(context.Background(), first.Clone()); !errors.Is(err, ErrConflict) {
		t.Errorf("commit on top of somebody else's: %v", err)
	}
}

func TestNotOurs(t *testing.T) {
	for _, c := range []struct {
		name     string
		change   func(*VG)
		read     error
		commit   error
		systemID string
	}{
		{name: "exported", change: func(vg *VG) { vg.Status = append(vg.Status, statusExported) }, read: ErrExported},
		{name: "clustered", change: func(vg *VG) { vg.Status = append(vg.Status, statusClustered) }, read: ErrShared},
		{name: "shared", change: func(vg *VG) { vg.Status = append(vg.Status, statusShared) }, read: ErrShared},
		{name: "lock type", change: func(vg *VG) { setKey(vg, "lock_type", `"sanlock"`) }, read: ErrShared},
		{name: "no lock type", change: func(vg *VG) { setKey(vg, "lock_type", `"none"`) }},
		{name: "foreign", change: func(vg *VG) { setKey(vg, "system_id", `"elsewhere"`) }, read: ErrForeignSystemID},
		{name: "our own", change: func(vg *VG) { setKey(vg, "system_id", `"here"`) }, systemID: "here"},
		{name: "read-only", change: func(vg *VG) { vg.Status = []string{statusResizeable, StatusRead} }, commit: ErrReadOnly},
		{name: "write locked", change: func(vg *VG) { vg.Status, vg.Flags = []string{statusResizeable, StatusRead}, []string{flagWriteLocked} }},
		{name: "unknown status", change: func(vg *VG) { vg.Status = append(vg.Status, "SHINY") }, read: ErrUnknownStatus},
		{name: "PV marked missing", change: func(vg *VG) {
			vg.PVs[0].text = strings.Replace(vg.PVs[0].text, "flags = []", `flags = ["MISSING"]`, 1)
		}, commit: ErrMissingPV},
	} {
		h := testHost(t)
		disks := blankDisks(t, 1, diskSize)
		s := createVG(t, h, disks, CreateOptions{})
		vg := read(t, s).Clone()
		c.change(vg)
		force(t, s, vg)
		s.Close()
		h.SystemID = c.systemID
		s, err := OpenVG(context.Background(), h, "vg", disks)
		if !errors.Is(err, c.read) || (err == nil) != (c.read == nil) {
			t.Errorf("%s: open: %v, want %v", c.name, err, c.read)
		}
		if err != nil {
			continue
		}
		next := read(t, s).Clone()
		if err := next.Add(linearLV("a", 0, 0, 1)); err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(context.Background(), next); !errors.Is(err, c.commit) || (err == nil) != (c.commit == nil) {
			t.Errorf("%s: commit: %v, want %v", c.name, err, c.commit)
		}
		s.Close()
	}
}

// force writes what Commit would refuse.
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

func TestRingWraps(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 2, diskSize)
	// Room for two texts of about 30 KiB: every few commits wrap.
	s := createVG(t, h, disks, CreateOptions{MetadataSize: 60 * size.KiB, DataAlignment: 4 * size.KiB})
	wrapped := 0
	edit(t, s, addLV("start", 0, 0, 1))
	for i := range 300 {
		edit(t, s, func(vg *VG) error {
			if n := len(vg.LVs); n > 5 && i%7 == 0 {
				return vg.Remove(vg.LVs[n/2].ID)
			}
			lv := vg.LVs[0].Clone()
			lv.Tags = []string{strings.Repeat("x", i%90+1)}
			if err := vg.Replace(lv); err != nil || len(vg.Free()) == 0 {
				return err
			}
			free := vg.Free()[0]
			return vg.Add(linearLV(fmt.Sprintf("lv%d", i), free.PV, free.Start, 1))
		})
		if c := s.areas[0].header.committed; c.offset+c.size > s.areas[0].header.size {
			wrapped++
		}
		if i%10 == 0 {
			if got, want := read(t, openVG(t, h, disks)), read(t, s); got.Seqno != want.Seqno || names(got) != names(want) {
				t.Fatalf("commit %d: seqno %d with %s on disk, want %d with %s", i, got.Seqno, names(got), want.Seqno, names(want))
			}
		}
	}
	if wrapped < 3 {
		t.Errorf("only %d texts wrapped around: the test tests nothing", wrapped)
	}
}

func TestMetadataFull(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 1, 10*diskSize)
	s := createVG(t, h, disks, CreateOptions{MetadataSize: 12 * size.KiB, DataAlignment: 4 * size.KiB})
	limit := s.areas[0].header.maxText()
	for i := 0; ; i++ {
		before := read(t, s)
		next := before.Clone()
		if err := next.Add(linearLV(fmt.Sprintf("lv%d", i), 0, Extents(i), 1)); err != nil {
			t.Fatal(err)
		}
		err := s.Commit(context.Background(), next)
		if err == nil {
			continue
		}
		if !errors.Is(err, ErrMetadataFull) || read(t, s) != before || read(t, openVG(t, h, disks)).Seqno != before.Seqno {
			t.Errorf("after %d: %v", i, err)
		}
		if used := before.source.size; used > limit || limit-used > 600 {
			t.Errorf("full at %d of %d bytes", used, limit)
		}
		break
	}
	edit(t, s, func(vg *VG) error { return vg.Remove(vg.LVs[0].ID) })
}

func TestAreas(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 3, diskSize)
	s := createVG(t, h, disks, CreateOptions{})
	edit(t, s, addLV("a", 0, 0, 1))
	s.Close()
	// The first disk gets a second area at its end, the second has none left, the
	// third's is ignored.
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
	// The new area alone must do.
	overwrite(t, disks[0], 4096, make([]byte, 512))
	if got := read(t, openVG(t, h, disks)); names(got) != "a b" {
		t.Errorf("the second area has %s", names(got))
	}
	rehead(t, disks[2], func(h *mdaHeader) { h.committed.flags = 0 })
	s = openVG(t, h, disks)
	if got := read(t, s); names(got) != "a b" {
		t.Errorf("the area in use again, but old, has won: %s", names(got))
	}
	edit(t, s, addLV("c", 1, 1, 1))
	if h := header(t, disks[2]); h.committed.size != s.vg.source.size {
		t.Error("the area in use again was not written")
	}
}

func TestNoAreaInUse(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 1, diskSize)
	s := createVG(t, h, disks, CreateOptions{})
	rehead(t, disks[0], func(h *mdaHeader) { h.committed.flags = slotIgnored })
	if _, err := s.Read(context.Background()); !errors.Is(err, ErrNotFound) {
		t.Errorf("only an ignored area: %v", err)
	}
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

// Who only looks cannot change anything.
func TestOpenReadOnly(t *testing.T) {
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
		t.Error("a commit by who only looks")
	}
	if got := read(t, s); len(got.Tags) != 0 {
		t.Errorf("the group has tags %v", got.Tags)
	}
}
