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

// TestStore_inUse: an open store that is in use shows each write, and agrees
// with the snapshot's status.
func TestStore_inUse(t *testing.T) {
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
				h.overwrite(random, changed[random.IntN(n)]) // a second write adds no exception
				h.check(s, changed[:n])

				// The exceptions below the earlier used length are the earlier exceptions.
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
					t.Fatalf("the store's chunk for %+v does not have the origin's content", e)
				}
			}
			// A write to the snapshot also adds an exception.
			last := all[c.writes]
			h.write(snapName, size.Bytes(last)*c.chunk, other(0, size.SectorBytes))
			h.check(s, all)
		})
	}
}

// TestExceptions_whileWriting: a read shows all writes that were complete when
// it began, and none that began after it ended.
func TestExceptions_whileWriting(t *testing.T) {
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
				t.Errorf("only %d reads during %d writes", reads, writes)
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

// TestUsedSectors_trimmedStore: the kernel loads a store that was cut to its
// used length, and not a store that is one chunk shorter. All chunks are
// written by one request, so that many exceptions are in flight together.
func TestUsedSectors_trimmedStore(t *testing.T) {
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

// TestUsed_kernelGaps: Used agrees with the kernel if data chunks have no
// exception.
func TestUsed_kernelGaps(t *testing.T) {
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

// TestStore_growsAndFills: an open store follows the growth of its device and
// the loss of its snapshot.
func TestStore_growsAndFills(t *testing.T) {
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
