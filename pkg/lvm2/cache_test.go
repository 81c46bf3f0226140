//go:build !kernel

package lvm2

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// trace has the writes and flushes of several disks in one order, and the commits that
// have returned.
type trace struct {
	mu     sync.Mutex
	events []traced
}

// traced is one entry of a trace: a write if it has content, the return of a commit if it
// has a seqno, else a flush.
type traced struct {
	disk    int
	at      int64
	content []byte
	seqno   uint64
}

func (t *trace) add(e traced) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, e)
}

// recordedFile is a disk whose writes and flushes are traced. A flush is traced when it
// has ended, a write when it begins.
type recordedFile struct {
	diskFile
	disk int
	to   *trace
}

func (f *recordedFile) WriteAt(b []byte, at int64) (int, error) {
	f.to.add(traced{disk: f.disk, at: at, content: slices.Clone(b)})
	return f.diskFile.WriteAt(b, at)
}

func (f *recordedFile) Sync() error {
	err := f.diskFile.Sync()
	f.to.add(traced{disk: f.disk})
	return err
}

// cut writes what a power cut after the events may leave on the disks. kept decides about
// each sector that was not flushed.
func cut(disks [][]byte, events []traced, kept func(disk, write, sector int) bool) {
	for i := range disks {
		flushed := -1
		for n, e := range events {
			if e.disk == i && e.content == nil && e.seqno == 0 {
				flushed = n
			}
		}
		for n, e := range events {
			if e.disk != i {
				continue
			}
			for from := 0; from < len(e.content); from += size.SectorBytes {
				if n < flushed || kept(i, n, from/size.SectorBytes) {
					copy(disks[i][e.at+int64(from):], e.content[from:min(from+size.SectorBytes, len(e.content))])
				}
			}
		}
	}
}

// TestCommit_caches: wherever the power is cut, and whatever part of their caches two disks
// lose, every reader sees the last commit that has returned or the one that is under way,
// and nothing looks as if a disk had lost what it had flushed.
func TestCommit_caches(t *testing.T) {
	h := testHost(t)
	const length = 256 * size.KiB
	paths := blankDisks(t, 2, length)
	s := createVG(t, h, paths, CreateOptions{MetadataSize: 14 * size.KiB, DataAlignment: 4 * size.KiB, ExtentSize: 64 * size.KiB})
	edit(t, s, addLV("lv", 0, 0, 1))
	first := make([][]byte, len(paths))
	tr := &trace{}
	for i, path := range paths {
		first[i] = content(t, path, 0, int(length))
		for _, d := range s.open {
			if d.path == path {
				d.file = &recordedFile{d.file, i, tr}
			}
		}
	}
	began := read(t, s).Seqno
	for range 14 { // the texts wrap around the areas several times
		edit(t, s, func(vg *VG) error { return vg.Replace(vg.LV("lv").Clone()) })
		tr.add(traced{disk: -1, seqno: read(t, s).Seqno})
	}
	random := rand.New(rand.NewPCG(1, 2))
	whole := map[int]bool{}
	losses := map[string]func(disk, write, sector int) bool{
		"both lose their caches":  func(int, int, int) bool { return false },
		"both write their caches": func(int, int, int) bool { return true },
		"the first loses its":     func(disk, _, _ int) bool { return disk == 1 },
		"the second loses its":    func(disk, _, _ int) bool { return disk == 0 },
		"some writes are lost": func(_, write, _ int) bool {
			if _, drawn := whole[write]; !drawn {
				whole[write] = random.IntN(2) == 0
			}
			return whole[write]
		},
		"some sectors are lost": func(int, int, int) bool { return random.IntN(2) == 0 },
	}
	again := blankDisks(t, 2, length)
	cuts := 0
	for n := range len(tr.events) + 1 {
		returned := began
		for _, e := range tr.events[:n] {
			returned = max(returned, e.seqno)
		}
		for what, kept := range losses {
			repeat := 1
			if strings.HasPrefix(what, "some") {
				repeat = 6
			}
			for range repeat {
				clear(whole)
				images := [][]byte{slices.Clone(first[0]), slices.Clone(first[1])}
				cut(images, tr.events[:n], kept)
				for i := range images {
					overwrite(t, again[i], 0, images[i])
				}
				cuts++
				if err := afterCut(h, again, returned, cuts%8 == 0); err != nil {
					t.Fatalf("power cut after event %d of %d, %s: %v", n, len(tr.events), what, err)
				}
			}
		}
	}
	t.Logf("%d power cuts in %d events", cuts, len(tr.events))
}

// afterCut checks the disks after a power cut, when the commit with the seqno returned had
// returned. If heal is set, the next commit must make all copies equal.
func afterCut(h Host, disks []string, returned uint64, heal bool) error {
	s, err := OpenVG(context.Background(), h, "vg", disks)
	if err != nil {
		return err
	}
	defer s.Close()
	vg, err := s.Read(context.Background())
	if err != nil {
		return err
	}
	if vg.Seqno != returned && vg.Seqno != returned+1 || vg.LV("lv") == nil {
		return fmt.Errorf("seqno %d with %s, want %d or the next", vg.Seqno, names(vg), returned)
	}
	if lost := s.Lost(); len(lost) > 0 {
		return fmt.Errorf("%v", lost)
	}
	if !heal {
		return nil
	}
	next := vg.Clone()
	if err := next.Replace(next.LV("lv").Clone()); err != nil {
		return err
	}
	if err := s.Commit(context.Background(), next); err != nil {
		return err
	}
	if s.Stale() || len(s.Problems()) > 0 {
		return fmt.Errorf("after the next commit: %v", s.Problems())
	}
	return nil
}
