package cow

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// header returns a header. The chunk size is in sectors and may be invalid.
func header(valid, version, chunk uint32) []byte {
	b := []byte("SnAp")
	for _, v := range []uint32{valid, version, chunk} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// made returns a store of the given number of chunks with the exceptions of list.
func made(chunk size.Bytes, chunks int, list []Exception) []byte {
	b := make([]byte, chunks*int(chunk))
	copy(b, header(1, 1, uint32(chunk.Sectors())))
	perArea := int(chunk) / 16
	for i, e := range list {
		entry := b[(1+i/perArea*(perArea+1))*int(chunk)+i%perArea*16:]
		binary.LittleEndian.PutUint64(entry, e.Origin)
		binary.LittleEndian.PutUint64(entry[8:], e.Store)
	}
	return b
}

// recorded returns n exceptions without gaps, as the kernel allocates them.
func recorded(chunk size.Bytes, n int) []Exception {
	var list []Exception
	perArea := int(chunk) / 16
	for next := 2; len(list) < n; next++ {
		if next%(perArea+1) != 1 {
			list = append(list, Exception{Origin: uint64(3 * len(list)), Store: uint64(next)})
		}
	}
	return list
}

// memory is the source of a store in memory.
type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

func inMemory(b []byte) *Store { return &Store{"memory", memory{bytes.NewReader(b)}} }

// collect returns the exceptions of a store up to the first error.
func collect(ctx context.Context, s *Store) (list []Exception, err error) {
	for e, err := range s.Exceptions(ctx) {
		if err != nil {
			return list, err
		}
		list = append(list, e)
	}
	return list, nil
}

// TestParseHeader_errors: a header parses to its fields, and an impossible
// header is an error.
func TestParseHeader_errors(t *testing.T) {
	for _, c := range []struct {
		name   string
		header []byte
		want   Header
		err    error
	}{
		{"valid", header(1, 1, 8), Header{true, 1, 4 * size.KiB}, nil},
		{"any other number than 0 is valid", header(7, 1, 1), Header{true, 1, 512}, nil},
		{"lost", header(0, 1, 1024), Header{false, 1, 512 * size.KiB}, nil},
		{"biggest chunk", header(1, 1, 1<<21), Header{true, 1, size.GiB}, nil},
		{"zeroed", make([]byte, 16), Header{}, ErrFresh},
		{"magic zeroed", append(make([]byte, 4), header(1, 1, 8)[4:]...), Header{}, ErrFresh},
		{"something else", []byte("LABELONE\x01\x00\x00\x00\x00\x00\x00\x00"), Header{}, ErrNotStore},
		{"other version", header(1, 2, 8), Header{}, ErrDamaged},
		{"no chunk size", header(1, 1, 0), Header{}, ErrDamaged},
		{"odd chunk size", header(1, 1, 24), Header{}, ErrDamaged},
		{"too big chunk size", header(1, 1, 1<<22), Header{}, ErrDamaged},
	} {
		got, err := parseHeader(c.header)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

// TestException_check: an exception must point to a complete data chunk, and
// its chunk of the origin must be below 2⁶³ bytes.
func TestException_check(t *testing.T) {
	const chunk = 4 * size.KiB
	const length = 600*chunk + 512
	for _, c := range []struct {
		e    Exception
		good bool
	}{
		{Exception{0, 2}, true},
		{Exception{7, 599}, true},
		{Exception{7, 257}, true},
		{Exception{7, 0}, false},       // header
		{Exception{7, 1}, false},       // areas
		{Exception{7, 258}, false},     //
		{Exception{7, 515}, false},     //
		{Exception{7, 600}, false},     // the chunk is only partly in the store
		{Exception{7, 1 << 60}, false}, // beyond the end
		{Exception{1<<51 - 1, 2}, true},
		{Exception{1 << 51, 2}, false}, // 2⁶³ bytes
	} {
		if err := c.e.check(chunk, length); (err == nil) != c.good || err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("%+v: %v", c.e, err)
		}
	}
}

// FuzzParseHeader: a header that parses has a possible chunk size and survives
// a round trip.
func FuzzParseHeader(f *testing.F) {
	f.Add(header(1, 1, 8))
	f.Add(header(0, 1, 1<<22))
	f.Add(make([]byte, 16))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerBytes {
			return
		}
		h, err := parseHeader(b)
		if err != nil {
			return
		}
		if h.Chunk < size.SectorBytes || h.Chunk > biggestChunk || h.Chunk&(h.Chunk-1) != 0 {
			t.Fatalf("chunk size %d", h.Chunk)
		}
		valid := uint32(0)
		if h.Valid {
			valid = 1
		}
		again, err := parseHeader(header(valid, h.Version, uint32(h.Chunk.Sectors())))
		if err != nil || again != h {
			t.Fatalf("%+v became %+v, %v", h, again, err)
		}
	})
}

// FuzzStore: a store of arbitrary bytes is read without a panic, and its
// exceptions survive a round trip. The fuzzer's bytes are the header, the
// entries of one area after another, and the number of chunks.
func FuzzStore(f *testing.F) {
	entries := func(list []Exception) (b []byte) {
		for _, e := range list {
			b = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(b, e.Origin), e.Store)
		}
		return b
	}
	for _, n := range []int{0, 1, 31, 32, 33, 64} {
		f.Add(header(1, 1, 1), entries(recorded(512, n)), uint16(1+n+n/32+1))
	}
	f.Add(header(1, 1, 1), entries(recorded(512, 32)), uint16(34))
	f.Add(header(0, 1, 8), entries(recorded(4096, 3)), uint16(6))
	f.Add(header(1, 1, 1), entries([]Exception{{1, 34}, {2, 1 << 63}}), uint16(100))
	f.Add([]byte{}, []byte{}, uint16(3))
	f.Fuzz(func(t *testing.T, head, entries []byte, chunks uint16) {
		chunk := size.Bytes(size.SectorBytes)
		if len(head) >= headerBytes {
			if h, err := parseHeader(head); err == nil && h.Chunk <= 4*size.KiB {
				chunk = h.Chunk
			}
		}
		b := make([]byte, min(int(chunks), 300)*int(chunk))
		copy(b, head)
		stride := (int(chunk)/16 + 1) * int(chunk)
		for at := int(chunk); at < len(b) && len(entries) > 0; at += stride {
			n := copy(b[at:min(len(b), at+int(chunk))], entries)
			entries = entries[n:]
		}
		s := inMemory(b)
		h, headerErr := s.Header()
		list, err := collect(t.Context(), s)
		if (headerErr != nil || !h.Valid) && (err == nil || len(list) > 0) {
			t.Fatalf("header %+v, %v, but exceptions %v", h, headerErr, list)
		}
		used, usedErr := s.Used(t.Context())
		if (usedErr == nil) != (err == nil) {
			t.Fatalf("exceptions: %v; used: %v", err, usedErr)
		}
		if err != nil {
			return
		}
		if used > size.Bytes(len(b)).Sectors()+h.Chunk.Sectors() || used < UsedSectors(h.Chunk, 0) {
			t.Fatalf("%d sectors of %d bytes are used", used, len(b))
		}
		again, err := collect(t.Context(), inMemory(made(h.Chunk, len(b)/int(h.Chunk)+1, list)))
		if err != nil || !slices.Equal(again, list) {
			t.Fatalf("%v became %v, %v", list, again, err)
		}
	})
}

// TestNewHeader_roundTrip: a new header parses as a valid header of its chunk
// size.
func TestNewHeader_roundTrip(t *testing.T) {
	for chunk := MinChunk; chunk <= MaxChunk; chunk *= 2 {
		b := NewHeader(chunk)
		h, err := parseHeader(b)
		if err != nil || !h.Valid || h.Version != version || h.Chunk != chunk || len(b) != int(MinChunk) {
			t.Errorf("chunk size %v: %d bytes are read as %+v, %v", chunk, len(b), h, err)
		}
	}
}
