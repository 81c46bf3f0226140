//go:build !kernel

package lvm2

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestMDAHeader_asLVM2: lvm2's header decodes and encodes to the same bytes,
// and each damaged byte is an error.
func TestMDAHeader_asLVM2(t *testing.T) {
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

// TestMDAHeader_ring: the next text begins where lvm2 would write it, and wraps
// after the header.
func TestMDAHeader_ring(t *testing.T) {
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
		{15872, 513, 1024}, // one byte after the header
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
		t.Error("the first text of an ignored area must begin after the header")
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

// TestMDAHeader_neverOverlaps: a new text never overlaps the committed text,
// whatever their lengths.
func TestMDAHeader_neverOverlaps(t *testing.T) {
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

// FuzzMDAHeader: a header that decodes survives a round trip and places texts
// inside its area.
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
