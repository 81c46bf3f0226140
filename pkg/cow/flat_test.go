package cow

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// modelLayer is a frozen layer with its store in memory.
type modelLayer struct {
	chunk  size.Bytes
	length size.Bytes // of the volume at its cut
	list   []Exception
	store  []byte
}

// randomLayer returns a layer whose store has n chunks of an origin of the given
// length, with random content.
func randomLayer(r *rand.Rand, chunk, length size.Bytes, n int) *modelLayer {
	chunks := int(length.RoundUp(chunk) / chunk)
	n = min(n, chunks)
	list := recorded(chunk, n)
	for i, at := range r.Perm(chunks)[:n] {
		list[i].Origin = uint64(at)
	}
	l := &modelLayer{chunk: chunk, length: length, list: list}
	l.store = made(chunk, int(UsedSectors(chunk, uint64(n))/chunk.Sectors()), list)
	for _, e := range list {
		data := l.store[e.Store*uint64(chunk):][:chunk]
		for i := 0; i < len(data); i += 8 {
			binary.LittleEndian.PutUint64(data[i:], r.Uint64())
		}
	}
	return l
}

func (l *modelLayer) layer() Layer {
	used := size.Bytes(len(l.store)).Sectors()
	return Layer{l.chunk, l.length.Sectors(), used, NewStore("memory", bytes.NewReader(l.store), used.Bytes()).Exceptions}
}

// stacked returns the byte that a stack of snapshot targets, one for each layer,
// reads at an offset.
func stacked(layers []*modelLayer, top []byte, at size.Bytes) byte {
	for _, l := range layers {
		for _, e := range l.list {
			if e.Origin == uint64(at/l.chunk) {
				return l.store[size.Bytes(e.Store)*l.chunk+at%l.chunk]
			}
		}
	}
	return top[at]
}

// sink is a device of a fixed length.
type sink []byte

func (s sink) WriteAt(p []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(p)) > int64(len(s)) {
		return 0, fmt.Errorf("write of %d bytes at %d", len(p), at)
	}
	return copy(s[at:], p), nil
}

// assembled returns the content of a flat store's device. The gaps are garbage.
func assembled(f Flat, metadata []byte, layers []*modelLayer) []byte {
	out := bytes.Repeat([]byte{0xa5}, int(f.Data().Bytes()))
	for _, p := range f.Pieces() {
		copy(out[p.At.Bytes():(p.At+p.Length).Bytes()], metadata[p.From.Bytes():])
	}
	for _, l := range layers {
		out = append(out, l.store...)
	}
	return out
}

// flatten returns the flat store by which the first layer is read.
func flatten(t *testing.T, layers []*modelLayer, most int) (f Flat, device []byte, count uint64) {
	t.Helper()
	var list []Layer
	for _, l := range layers {
		list = append(list, l.layer())
	}
	f = NewFlat(Smallest(list), MostMerged(list))
	metadata := bytes.Repeat([]byte{0x5a}, int(f.Metadata()))
	count, err := f.Write(sink(metadata), merge(t.Context(), list, most))
	if err != nil {
		t.Fatal(err)
	}
	if limit := MostMerged(list); count > limit {
		t.Fatalf("%d exceptions, at most %d were expected", count, limit)
	}
	return f, assembled(f, metadata, layers), count
}

// kernelReads reads a store's exceptions like read_exceptions in the kernel.
func kernelReads(t *testing.T, device []byte) (chunk size.Bytes, found map[uint64]uint64) {
	t.Helper()
	h, err := parseHeader(device)
	if err != nil || !h.Valid {
		t.Fatalf("header: %+v, %v", h, err)
	}
	found = map[uint64]uint64{}
	for area := uint64(0); ; area++ {
		b := device[areaChunk(h.Chunk, area)*uint64(h.Chunk):][:h.Chunk]
		for ; len(b) > 0; b = b[entryBytes:] {
			e := parseException(b)
			if e.Store == 0 {
				return h.Chunk, found
			}
			if _, twice := found[e.Origin]; twice {
				t.Fatalf("chunk %d is listed twice", e.Origin)
			}
			found[e.Origin] = e.Store
		}
	}
}

func checkFlat(t *testing.T, layers []*modelLayer, most int) {
	t.Helper()
	top := make([]byte, layers[len(layers)-1].length)
	for i := range top {
		top[i] = byte(i >> 12)
	}
	f, device, count := flatten(t, layers, most)
	chunk, found := kernelReads(t, device)
	if chunk != f.Chunk || uint64(len(found)) != count {
		t.Fatalf("chunks of %v, %d exceptions, written were %d of %v", chunk, len(found), count, f.Chunk)
	}
	for at := size.Bytes(0); at < layers[0].length; at += MinChunk / 2 {
		got := top[at]
		if to, has := found[uint64(at/chunk)]; has {
			got = device[size.Bytes(to)*chunk+at%chunk]
		}
		if want := stacked(layers, top, at); got != want {
			t.Fatalf("byte %d is %#x, by the stack of %d layers %#x", at, got, len(layers), want)
		}
	}
	for n := range found {
		if n >= uint64(layers[0].length.RoundUp(chunk)/chunk) {
			t.Errorf("chunk %d is beyond the snapshot's end", n)
		}
	}
}

// TestFlat_equalsStack: a flat store reads as the stack of its layers.
func TestFlat_equalsStack(t *testing.T) {
	const k = size.KiB
	for name, c := range map[string]struct {
		chunks, lengths []size.Bytes
		n               []int
		most            int
	}{
		"one layer":                   {[]size.Bytes{4 * k}, []size.Bytes{256 * k}, []int{20}, 100},
		"nothing changed":             {[]size.Bytes{4 * k, 4 * k}, []size.Bytes{256 * k, 256 * k}, []int{0, 0}, 100},
		"all changed twice":           {[]size.Bytes{4 * k, 4 * k}, []size.Bytes{256 * k, 256 * k}, []int{64, 64}, 100},
		"a full area":                 {[]size.Bytes{4 * k, 4 * k}, []size.Bytes{2048 * k, 2048 * k}, []int{256, 0}, 1000},
		"one less":                    {[]size.Bytes{4 * k}, []size.Bytes{2048 * k}, []int{255}, 1000},
		"one more":                    {[]size.Bytes{4 * k}, []size.Bytes{2048 * k}, []int{257}, 1000},
		"all of two areas":            {[]size.Bytes{4 * k}, []size.Bytes{2048 * k}, []int{512}, 1000},
		"large chunks above small":    {[]size.Bytes{4 * k, 64 * k}, []size.Bytes{512 * k, 512 * k}, []int{30, 4}, 100},
		"small chunks above large":    {[]size.Bytes{64 * k, 4 * k}, []size.Bytes{512 * k, 512 * k}, []int{4, 30}, 100},
		"expanded":                    {[]size.Bytes{4 * k, 16 * k, 8 * k}, []size.Bytes{100 * k, 260 * k, 512 * k}, []int{9, 9, 60}, 100},
		"expanded, large chunk":       {[]size.Bytes{4 * k, 512 * k}, []size.Bytes{100 * k, 1024 * k}, []int{9, 2}, 1000},
		"read in several passes":      {[]size.Bytes{4 * k, 8 * k, 4 * k}, []size.Bytes{1024 * k, 1024 * k, 1024 * k}, []int{150, 100, 200}, 17},
		"one exception at a time":     {[]size.Bytes{4 * k, 4 * k}, []size.Bytes{128 * k, 128 * k}, []int{20, 32}, 1},
		"a pass ends with its layers": {[]size.Bytes{4 * k, 4 * k}, []size.Bytes{128 * k, 128 * k}, []int{32, 32}, 32},
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			var layers []*modelLayer
			for i, chunk := range c.chunks {
				layers = append(layers, randomLayer(r, chunk, c.lengths[i], c.n[i]))
			}
			checkFlat(t, layers, c.most)
		})
	}
}

// FuzzFlat: a flat store of random layers reads as the stack of its layers.
func FuzzFlat(f *testing.F) {
	f.Add(uint64(1), uint8(3), uint8(10))
	f.Add(uint64(2), uint8(12), uint8(200))
	f.Fuzz(func(t *testing.T, seed uint64, n, most uint8) {
		r := rand.New(rand.NewPCG(seed, 7))
		length := size.Bytes(1+r.IntN(60)) * 4 * size.KiB
		var layers []*modelLayer
		for range 1 + n%16 {
			if r.IntN(4) == 0 {
				length += size.Bytes(r.IntN(200)) * 4 * size.KiB
			}
			layers = append(layers, randomLayer(r, MinChunk<<r.IntN(4), length, r.IntN(80)))
		}
		checkFlat(t, layers, 1+int(most))
	})
}

// TestFlat_full: more exceptions than there is room for are refused before they
// overwrite the area that ends the list.
func TestFlat_full(t *testing.T) {
	some := func(n int) iter.Seq2[Exception, error] {
		return func(yield func(Exception, error) bool) {
			for i := range n {
				if !yield(Exception{uint64(i), uint64(i)}, nil) {
					return
				}
			}
		}
	}
	for n, fits := range map[int]bool{0: true, 255: true, 256: false, 300: false} {
		f := NewFlat(4*size.KiB, 255)
		if _, err := f.Write(make(sink, f.Metadata()), some(n)); (err == nil) != fits {
			t.Errorf("%d exceptions in %d areas: %v", n, f.Areas, err)
		}
	}
}

// TestFlat_pieces: the metadata lie where the kernel reads them.
func TestFlat_pieces(t *testing.T) {
	f := NewFlat(4*size.KiB, 600)
	want := []FlatPiece{{0, 0, 16}, {258 * 8, 16, 8}, {515 * 8, 24, 8}}
	if got := f.Pieces(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if f.Data() != 516*8 || f.Metadata() != 16*size.KiB {
		t.Errorf("data at %d, metadata take %v", f.Data(), f.Metadata())
	}
}
