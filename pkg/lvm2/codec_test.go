//go:build !kernel

package lvm2

import (
	"bytes"
	"errors"
	"os"
	"reflect"
	"slices"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// atSector puts a label sector at its place among the first four.
func atSector(n int, sector []byte) []byte {
	return append(append(make([]byte, n*size.SectorBytes), sector...), make([]byte, (labelSectors-1-n)*size.SectorBytes)...)
}

func TestLabel(t *testing.T) {
	written := golden(t, "label.bin")
	l, err := findLabel(atSector(1, written))
	if err != nil || l == nil {
		t.Fatal(l, err)
	}
	want := label{id: "gY0xmQ2q4DdrYUMR1Oo2qdwijL1mvcLb", size: size.GiB, data: []region{{size.MiB, 0}}, metadata: []region{{4 * size.KiB, 1044480}}, used: true}
	if !reflect.DeepEqual(*l, want) {
		t.Errorf("got %+v, want %+v", *l, want)
	}
	if !bytes.Equal(l.encode(), written) {
		t.Errorf("encoded\n%x\nlvm2 wrote\n%x", l.encode(), written)
	}
	if l, err := findLabel(atSector(2, written)); l != nil || err != nil {
		t.Errorf("a label in another sector than it says: %v, %v", l, err)
	}
	damaged := bytes.Clone(written)
	damaged[100] ^= 1
	if l, err := findLabel(atSector(1, damaged)); !errors.Is(err, ErrDamaged) {
		t.Errorf("damaged: %v, %v", l, err)
	}
}

func TestMDAHeader(t *testing.T) {
	written := golden(t, "mda.bin")
	where := region{4 * size.KiB, 1044480}
	h, err := decodeMDAHeader(written, where)
	if err != nil {
		t.Fatal(err)
	}
	if want := (slot{offset: 23040, size: 3094, crc: 0x677c5b1f}); h.committed != want || h.precommit != (slot{}) {
		t.Errorf("got %+v, want %+v", h.committed, want)
	}
	if !bytes.Equal(h.encode(), written) {
		t.Errorf("encoded\n%x\nlvm2 wrote\n%x", h.encode(), written)
	}
	text := golden(t, "disk.txt")
	if crc := checksum(text); crc != h.committed.crc || len(text) != int(h.committed.size) {
		t.Errorf("text of %d bytes has checksum %x", len(text), crc)
	}
	if h.maxText() != 521472 {
		t.Errorf("longest text %d, lvm2 has 521472", h.maxText())
	}
	for i := range 88 {
		damaged := bytes.Clone(written)
		damaged[i] ^= 1
		if _, err := decodeMDAHeader(damaged, where); !errors.Is(err, ErrDamaged) {
			t.Errorf("byte %d damaged: %v", i, err)
		}
	}
	for _, other := range []region{{8 * size.KiB, 1044480}, {4 * size.KiB, 1044481}} {
		if _, err := decodeMDAHeader(written, other); !errors.Is(err, ErrDamaged) {
			t.Errorf("label says %+v: %v", other, err)
		}
	}
}

func TestRing(t *testing.T) {
	h := mdaHeader{start: 4096, size: 16384}
	for _, c := range []struct {
		offset, size, next size.Bytes
	}{
		{0, 0, 512},
		{512, 100, 1024},
		{512, 512, 1024},
		{512, 513, 1536},
		{15360, 512, 15872},
		{15360, 513, 512},  // ends inside the last sector
		{15872, 512, 512},  // ends with the area
		{15872, 513, 1024}, // one byte behind the header
		{15872, 1024, 1024},
		{15872, 1025, 1536},
	} {
		h.committed = slot{offset: c.offset, size: c.size}
		if got := h.next(); got != c.next {
			t.Errorf("after %d bytes at %d: %d, want %d", c.size, c.offset, got, c.next)
		}
	}
	h.committed = slot{offset: 4096, size: 100, flags: slotIgnored}
	if h.next() != 512 {
		t.Error("an ignored area begins anew")
	}
	if got, want := h.split(15872, 1000), []region{{4096 + 15872, 512}, {4096 + 512, 488}}; !reflect.DeepEqual(got, want) {
		t.Errorf("split %v, want %v", got, want)
	}
	h.committed = slot{offset: 512, size: 7424}
	if _, err := h.place(7424, 0); err != nil {
		t.Errorf("longest text beside longest text: %v", err)
	}
	if _, err := h.place(7425, 0); !errors.Is(err, ErrMetadataFull) {
		t.Errorf("too long: %v", err)
	}
	h.committed = slot{offset: 512, size: 12000}
	if _, err := h.place(5000, 0); !errors.Is(err, ErrMetadataFull) {
		t.Errorf("no room beside an overlong text: %v", err)
	}
}

// Whatever the texts' lengths, a new one never touches the one in use.
func TestRingNeverOverlaps(t *testing.T) {
	for _, area := range []size.Bytes{2048, 4096, 5120, 16384} {
		for length := range area / 2 {
			h := mdaHeader{size: area}
			for step := size.Bytes(0); step < 100; step++ {
				s, err := h.place(1+(length+step*37)%h.maxText(), 0)
				if err != nil {
					t.Fatalf("area of %d, step %d: %v", area, step, err)
				}
				h.committed = s
			}
		}
	}
}

func FuzzLabel(f *testing.F) {
	f.Add(golden(f, "label.bin"))
	f.Fuzz(func(t *testing.T, sector []byte) {
		if len(sector) != size.SectorBytes {
			return
		}
		// Let the fuzzer past the checksum.
		l, err := decodeLabel(sector)
		if err != nil || l == nil || len(l.data)+len(l.metadata) > 15 {
			return
		}
		again, err := findLabel(atSector(labelSector, l.encode()))
		if err != nil || !reflect.DeepEqual(l, again) {
			t.Fatalf("%+v became %+v, %v", l, again, err)
		}
	})
}

func FuzzMDAHeader(f *testing.F) {
	f.Add(golden(f, "mda.bin"), uint64(4096), uint64(1044480))
	f.Fuzz(func(t *testing.T, sector []byte, offset, length uint64) {
		if len(sector) != mdaHeaderSize {
			return
		}
		b := bytes.Clone(sector)
		h := mdaHeader{start: size.Bytes(offset), size: size.Bytes(length), committed: decodeSlot(b[mdaSlots:]), precommit: decodeSlot(b[mdaSlots+slotSize:])}
		got, err := decodeMDAHeader(h.encode(), region{h.start, h.size})
		if err != nil {
			return
		}
		if got != h {
			t.Fatalf("%+v became %+v", h, got)
		}
		if s, err := got.place(1, 0); err == nil && (s.offset < mdaHeaderSize || s.offset+textAlign > got.size) {
			t.Fatalf("%+v puts a text at %d", got, s.offset)
		}
	})
}

func FuzzVG(f *testing.F) {
	f.Add(golden(f, "disk.txt"))
	f.Add(golden(f, "backup.txt"))
	f.Add([]byte(foreign))
	f.Fuzz(roundTrip)
}

// roundTrip checks that what parses and is valid survives being written.
func roundTrip(t *testing.T, text []byte) {
	summarize(text)
	vg, err := ParseVG(text)
	if err != nil {
		return
	}
	present(vg).Free()
	if vg.Validate() != nil {
		return
	}
	// Encoding anew, as after an edit, must not lose anything either.
	for _, lv := range vg.LVs {
		if vg.checkEditable(lv) == nil {
			lv.text = lv.encode(vg.PVs)
		}
	}
	out := vg.Text(Stamp{})
	again, err := ParseVG(out)
	if err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	if err := present(again).Validate(); err != nil || !reflect.DeepEqual(vg.Free(), again.Free()) || names(vg) != names(again) {
		t.Fatalf("%v\n%s", err, out)
	}
	if second := again.Text(Stamp{}); !bytes.Equal(out, second) {
		t.Fatalf("first\n%s\nsecond\n%s", out, second)
	}
}

// TestMutations goes where a fuzzer hardly gets, because few texts parse at all:
// real metadata with one byte changed, missing or doubled.
func TestMutations(t *testing.T) {
	for _, text := range [][]byte{golden(t, "disk.txt"), []byte(foreign)} {
		for i := range text {
			const characters = `0"{}[=,#\/ a-.`
			c := characters[i/3%len(characters)]
			changed := bytes.Clone(text)
			switch i % 3 {
			case 0:
				changed[i] = c
			case 1:
				changed = slices.Delete(changed, i, i+1)
			case 2:
				changed = slices.Insert(changed, i, c)
			}
			roundTrip(t, changed)
		}
	}
}
