//go:build kernel

package cow

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// openStore opens the history's store for the time of the test.
func (h *history) openStore() *Store {
	h.t.Helper()
	s, err := Open(h.dm.Node(cowName))
	must(h.t, err)
	h.t.Cleanup(func() { s.Close() })
	return s
}

// overwrite writes one sector somewhere in a chunk of the origin.
func (h *history) overwrite(random *rand.Rand, chunk uint64) {
	h.t.Helper()
	sector := size.Sectors(random.Uint64N(uint64(h.chunk.Sectors()))).Bytes()
	at := size.Bytes(chunk)*h.chunk + sector
	h.write(originName, at, other(at, size.SectorBytes))
}

// chunks returns n of the origin's chunks in a random order.
func (h *history) chunks(random *rand.Rand, n int) []uint64 {
	var list []uint64
	for _, i := range random.Perm(int(h.length / h.chunk))[:n] {
		list = append(list, uint64(i))
	}
	return list
}

// check compares a store with the chunks that were changed, in that order, and
// with the snapshot's status.
func (h *history) check(s *Store, changed []uint64) {
	h.t.Helper()
	list, err := collect(h.t.Context(), s)
	must(h.t, err)
	got := make([]uint64, len(list))
	for i, e := range list {
		got[i] = e.Origin
	}
	if !slices.Equal(got, changed) {
		h.t.Fatalf("exceptions for the chunks\n%v\nwere read, not for\n%v", got, changed)
	}
	n, status := len(changed), h.status()
	if used := UsedSectors(h.chunk, uint64(n)); used != status.Used {
		h.t.Fatalf("%d exceptions use %d sectors, status is %v", n, used, status)
	}
	if data := size.Sectors(n) * h.chunk.Sectors(); status.Used-status.Metadata != data {
		h.t.Fatalf("%d exceptions of %d sectors, status is %v", n, data, status)
	}
	if used, err := s.Used(h.t.Context()); err != nil || used != status.Used {
		h.t.Fatalf("store of %d exceptions uses %d sectors, %v; status is %v", n, used, err, status)
	}
}

// What the reader tells of a store in use, write by write, with one open file.
func TestLiveStore(t *testing.T) {
	for _, c := range []struct {
		chunk  size.Bytes
		writes int
		every  int
	}{
		{size.SectorBytes, 100, 1}, // 32 entries in an area
		{4 * size.KiB, 520, 37},    // 256
		{16 * size.KiB, 60, 11},
		{64 * size.KiB, 30, 7},
		{512 * size.KiB, 6, 1},
	} {
		t.Run(c.chunk.String(), func(t *testing.T) {
			h := newHistory(t, c.chunk, c.writes+3, LargestUseful(size.Bytes(c.writes+3)*c.chunk, c.chunk))
			random := rand.New(rand.NewPCG(1, uint64(c.chunk)))
			s := h.openStore()
			header, err := s.Header()
			must(t, err)
			if header != (Header{true, 1, c.chunk}) {
				t.Errorf("header is %+v", header)
			}
			all, perArea := h.chunks(random, c.writes+1), int(c.chunk/entryBytes)
			changed := all[:c.writes]
			h.check(s, nil)
			var before []Exception
			used := h.status().Used
			for i, chunk := range changed {
				n := i + 1
				h.overwrite(random, chunk)
				if left := n % perArea; left > 2 && left < perArea-2 && n > 2 && n%c.every > 0 && n < c.writes {
					continue
				}
				h.overwrite(random, changed[random.IntN(n)]) // once more changes nothing
				h.check(s, changed[:n])

				// The used count that was read earlier divides what was there then from the rest.
				now, err := collect(t.Context(), s)
				must(t, err)
				older := slices.DeleteFunc(slices.Clone(now), func(e Exception) bool {
					return e.Store >= uint64(used/c.chunk.Sectors())
				})
				if !slices.Equal(older, before) {
					t.Fatalf("below %d used sectors are %v, not %v", used, older, before)
				}
				before, used = now, h.status().Used
			}
			for _, e := range before {
				got, err := h.read(cowName, size.Bytes(e.Store)*c.chunk, c.chunk)
				must(t, err)
				if !bytes.Equal(got, original(size.Bytes(e.Origin)*c.chunk, c.chunk)) {
					t.Fatalf("the store's chunk for %+v has not the origin's content", e)
				}
			}
			// A write to the snapshot is an exception, too.
			last := all[c.writes]
			h.write(snapName, size.Bytes(last)*c.chunk, other(0, size.SectorBytes))
			h.check(s, all)
		})
	}
}

// A reader beside a writer sees all writes that were complete when it began, and
// none that had not begun when it ended.
func TestReadWhileWriting(t *testing.T) {
	const chunk, writes = 4 * size.KiB, 600
	h := newHistory(t, chunk, writes, LargestUseful(writes*chunk, chunk))
	random := rand.New(rand.NewPCG(2, 0))
	order := h.chunks(random, writes)
	place := make([]int, writes)
	for i, chunk := range order {
		place[chunk] = i
	}
	var begun, complete atomic.Int64
	done := make(chan struct{})
	s := h.openStore()
	go func() {
		defer close(done)
		for _, chunk := range order {
			begun.Add(1)
			h.overwrite(random, chunk)
			complete.Add(1)
		}
	}()
	defer func() { <-done }()
	for reads, running := 0, true; running; reads++ {
		select {
		case <-done:
			running = false
			if reads < 5 {
				t.Errorf("only %d reads while %d writes went on", reads, writes)
			}
		default:
		}
		least := int(complete.Load())
		list, err := collect(t.Context(), s)
		must(t, err)
		most := int(begun.Load())
		if len(list) < least || len(list) > most {
			t.Fatalf("%d exceptions, %d to %d writes", len(list), least, most)
		}
		for i, e := range list {
			if place[e.Origin] != i {
				t.Fatalf("exception %d is %+v, which was write %d", i, e, place[e.Origin])
			}
		}
	}
}

// A frozen store without its unused tail, and then cut one chunk too short. All
// chunks are written at once, so that many exceptions are in flight together.
func TestTrimmedStore(t *testing.T) {
	type store struct {
		chunk size.Bytes
		n     uint64
	}
	stores := []store{{8 * size.KiB, 512}}
	for _, n := range []uint64{0, 1, 254, 255, 256, 257, 511, 512, 513} {
		stores = append(stores, store{4 * size.KiB, n})
	}
	for _, s := range stores {
		chunk, n := s.chunk, s.n
		t.Run(fmt.Sprintf("%v,%d", chunk, n), func(t *testing.T) {
			chunks := int(n) + 50
			h := newHistory(t, chunk, chunks, LargestUseful(size.Bytes(chunks)*chunk, chunk))
			h.write(originName, 0, other(0, size.Bytes(n)*chunk))
			used := UsedSectors(chunk, n)
			must(t, h.reloaded(used.Bytes()))
			if s := h.status(); s.Used != used || s.Total != used {
				t.Errorf("status is %v, not %d/%d", s, used, used)
			}
			got, err := h.read(snapName, 0, h.length)
			must(t, err)
			if !bytes.Equal(got, original(0, h.length)) {
				t.Error("the snapshot's content has changed")
			}
			s, err := Open(h.dm.Node(cowName))
			must(t, err)
			list, err := collect(t.Context(), s)
			must(t, errors.Join(err, s.Close()))
			seen := map[uint64]bool{}
			for _, e := range list {
				seen[e.Origin] = e.Origin < n
			}
			if len(list) != int(n) || len(seen) != len(list) || slices.Contains(slices.Collect(maps.Values(seen)), false) {
				t.Errorf("exceptions are %v", list)
			}

			err = h.reloaded(used.Bytes() - chunk)
			if n%uint64(chunk/entryBytes) > 0 {
				must(t, err)
				if _, err := h.read(snapName, 0, h.length); !errors.Is(err, unix.EIO) {
					t.Errorf("the snapshot without its last data chunk is read with %v", err)
				}
			} else if err == nil {
				t.Error("the kernel loads a store without its last area")
			}
			if _, err := collect(t.Context(), h.openStore()); !errors.Is(err, ErrDamaged) {
				t.Errorf("exceptions are read with %v", err)
			}
		})
	}
}

// Data chunks without an exception count as used when the store is loaded.
func TestStoreWithGaps(t *testing.T) {
	const chunk = 4 * size.KiB
	h := newHistory(t, chunk, 600, 4*size.MiB)
	random := rand.New(rand.NewPCG(4, 0))
	for _, c := range h.chunks(random, 5) {
		h.overwrite(random, c)
	}
	h.remove(originName, snapName)
	area, err := h.read(cowName, chunk, chunk)
	must(t, err)
	for _, highest := range []uint64{9, 256, 257, 259, 514, 516} {
		h.load(cowName, 4*size.MiB, false, dm.Linear{Device: disk(t, 1)})
		h.resume(cowName)
		binary.LittleEndian.PutUint64(area[2*entryBytes+8:], highest)
		h.write(cowName, chunk, area)
		must(t, h.reloaded(4*size.MiB))
		s, err := Open(h.dm.Node(cowName))
		must(t, err)
		used, err := s.Used(t.Context())
		must(t, errors.Join(err, s.Close()))
		if got := h.status().Used; used != got {
			t.Errorf("with chunk %d in use: %d sectors are used, status says %d", highest, used, got)
		}
		h.remove(snapName)
	}
}

// A store that is open here grows, and then is lost.
func TestStoreGrowsAndFills(t *testing.T) {
	const chunk = 16 * size.KiB
	h := newHistory(t, chunk, 20, 6*chunk)
	random := rand.New(rand.NewPCG(5, 0))
	changed := h.chunks(random, 20)
	s := h.openStore()
	for _, c := range changed[:4] {
		h.overwrite(random, c)
	}
	h.check(s, changed[:4])
	h.load(cowName, 10*chunk, false, dm.Linear{Device: disk(t, 1)})
	h.resume(cowName)
	for _, c := range changed[4:8] {
		h.overwrite(random, c)
	}
	h.check(s, changed[:8])
	h.overwrite(random, changed[8])
	if !h.status().Invalid {
		t.Fatalf("status of a full store is %v", h.status())
	}
	if header, err := s.Header(); err != nil || header != (Header{false, 1, chunk}) {
		t.Errorf("header of a lost snapshot is %+v, %v", header, err)
	}
	if list, err := collect(t.Context(), s); !errors.Is(err, ErrInvalid) || len(list) > 0 {
		t.Errorf("exceptions of a lost snapshot are %v, %v", list, err)
	}
}
