//go:build !kernel

package lvm2

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// faults breaks the n-th write or flush over all disks.
type faults struct {
	mu    sync.Mutex
	count int
	n     int
	kind  fault
	done  bool // the n-th came
}

type fault string

const (
	failsBefore fault = "fails, nothing written"
	failsAfter  fault = "fails, all written"
	crashBefore fault = "crash before"
	crashInside fault = "crash with half of it written"
	crashAfter  fault = "crash after"
)

var errFault = errors.New("injected fault")

func (f *faults) crash() bool { return f.kind != failsBefore && f.kind != failsAfter }

// next decides about a write or flush: whether it happens, wholly or by half,
// and what is reported.
func (f *faults) next() (part float64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count++
	switch {
	case f.done && f.crash():
		return 0, errFault
	case f.count != f.n:
		return 1, nil
	}
	f.done = true
	switch f.kind {
	case failsBefore, crashBefore:
		return 0, errFault
	case crashInside:
		return 0.5, errFault
	default:
		return 1, errFault
	}
}

type faultyFile struct {
	diskFile
	faults *faults
}

func (f *faultyFile) WriteAt(b []byte, at int64) (int, error) {
	part, err := f.faults.next()
	n := int(float64(len(b))*part) / size.SectorBytes * size.SectorBytes
	if n > 0 {
		if _, werr := f.diskFile.WriteAt(b[:n], at); werr != nil {
			return 0, werr
		}
	}
	return n, err
}

func (f *faultyFile) Sync() error {
	part, err := f.faults.next()
	if part < 1 {
		return err
	}
	return errors.Join(err, f.diskFile.Sync())
}

func (s *Store) inject(f *faults) {
	for _, d := range s.open {
		if ff, ok := d.file.(*faultyFile); ok {
			d.file = ff.diskFile
		}
		if f != nil {
			d.file = &faultyFile{d.file, f}
		}
	}
}

// volatileFile is a disk whose cache forgets what was not flushed when the power
// goes.
type volatileFile struct {
	diskFile
	unflushed []before
}

// before is what a write replaced.
type before struct {
	at      int64
	content []byte
}

func (f *volatileFile) WriteAt(b []byte, at int64) (int, error) {
	old := alignedBuffer(size.Bytes(len(b)))
	if _, err := f.ReadAt(old, at); err != nil {
		return 0, err
	}
	f.unflushed = append(f.unflushed, before{at, old})
	return f.diskFile.WriteAt(b, at)
}

func (f *volatileFile) Sync() error {
	f.unflushed = nil
	return f.diskFile.Sync()
}

// powerCut loses all that was not flushed, or the oldest of it only: a disk
// keeps no order by itself.
func (f *volatileFile) powerCut(all bool) error {
	lost := f.unflushed
	if !all && len(lost) > 1 {
		lost = lost[:1]
	}
	for _, w := range slices.Backward(lost) {
		if _, err := f.diskFile.WriteAt(w.content, w.at); err != nil {
			return err
		}
	}
	return nil
}

// Whatever write or flush of a commit fails or is the last before a crash,
// there is the old volume group or the new one, and the same for every reader.
func TestCommitFaults(t *testing.T) {
	for _, kind := range []fault{failsBefore, failsAfter, crashBefore, crashInside, crashAfter} {
		for n := 1; ; n++ {
			if !commitFault(t, kind, n) {
				// Text and precommit, flush, commit, flush: on two areas.
				if n <= 5*2 {
					t.Errorf("%s: a commit has only %d writes and flushes", kind, n-1)
				}
				break
			}
		}
	}
}

func commitFault(t *testing.T, kind fault, n int) (came bool) {
	name := fmt.Sprintf("%s, step %d", kind, n)
	h := testHost(t)
	disks := blankDisks(t, 2, 2*size.MiB)
	s := createVG(t, h, disks, CreateOptions{MetadataSize: 14 * size.KiB, DataAlignment: 4 * size.KiB, ExtentSize: 64 * size.KiB})
	defer s.Close()
	// Texts of several sectors, and the one to come wraps.
	for s.areas[0].header.next()+3000 < s.areas[0].header.size {
		edit(t, s, func(vg *VG) error {
			if vg.LV("old") == nil {
				return vg.Add(linearLV("old", 0, 0, 1))
			}
			return vg.Replace(vg.LV("old").Clone())
		})
	}
	before := read(t, s)
	next := before.Clone()
	if err := next.Add(linearLV("new", 1, 0, 1)); err != nil {
		t.Fatal(err)
	}
	f := &faults{n: n, kind: kind}
	var caches []*volatileFile
	for _, d := range s.open {
		cache := &volatileFile{diskFile: d.file}
		d.file = cache
		caches = append(caches, cache)
	}
	s.inject(f)
	err := s.Commit(context.Background(), next)
	s.inject(nil)
	for i, cache := range caches {
		if !f.done || f.crash() {
			if err := cache.powerCut(n%2 == i%2); err != nil {
				t.Fatal(err)
			}
		}
	}
	if f.done && !f.crash() {
		// We go on living: what Commit said is what we and everybody else see.
		want := before.Seqno
		if err == nil {
			want++
		}
		if got := read(t, s); got.Seqno != want {
			t.Errorf("%s: Commit says %v, Read seqno %d", name, err, got.Seqno)
		}
	}
	// Another process, or the next start.
	disksSee := make([]uint64, len(disks))
	other := openVG(t, h, disks)
	got := read(t, other)
	for i, a := range other.areas {
		disksSee[i] = a.about.seqno
		if a.err != nil {
			t.Errorf("%s: %v", name, a.err)
		}
	}
	isNew := got.LV("new") != nil
	switch {
	case isNew != (got.Seqno == before.Seqno+1) || got.LV("old") == nil:
		t.Errorf("%s: neither old nor new: seqno %d, %s", name, got.Seqno, names(got))
	case err == nil && !isNew:
		t.Errorf("%s: Commit succeeded, but the old one is on disk", name)
	case err != nil && isNew && !f.crash():
		t.Errorf("%s: Commit failed with %v, but the new one is on disk", name, err)
	}
	// The next commit leaves all areas equal.
	edit(t, other, func(vg *VG) error { return vg.Replace(vg.LV("old").Clone()) })
	for i, path := range disks {
		if header(t, path).committed.crc != other.vg.source.crc {
			t.Errorf("%s: area %d, seqno %d after the fault, is still old after the next commit", name, i, disksSee[i])
		}
	}
	if p := other.Problems(); len(p) > 0 {
		t.Errorf("%s: after the next commit: %v", name, p)
	}
	return f.done
}

// An area that fails at the last step is reported, and the commit stands.
func TestCommitPartial(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 2, diskSize)
	s := createVG(t, h, disks, CreateOptions{})
	next := read(t, s).Clone()
	if err := next.Add(linearLV("new", 1, 0, 1)); err != nil {
		t.Fatal(err)
	}
	// Text and precommit take four steps of the disk, the fifth is the commit.
	for _, d := range s.open {
		if d.path == disks[1] {
			d.file = &faultyFile{d.file, &faults{n: 5, kind: crashBefore}}
		}
	}
	if err := s.Commit(context.Background(), next); err != nil {
		t.Fatal(err)
	}
	if p := s.Problems(); len(p) != 1 || !errors.Is(p[0], errFault) {
		t.Errorf("problems %v", p)
	}
	s.inject(nil)
	if got := read(t, s); got != next {
		t.Errorf("seqno %d is read after the commit of %d", got.Seqno, next.Seqno)
	}
	edit(t, s, addLV("more", 1, 1, 1))
	if p := s.Problems(); len(p) > 0 || header(t, disks[0]).committed.crc != header(t, disks[1]).committed.crc {
		t.Errorf("the area was not brought up to date: %v", p)
	}
}
