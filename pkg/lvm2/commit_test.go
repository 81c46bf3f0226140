//go:build !kernel

package lvm2

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// faults breaks the n-th write or flush, counted over all disks.
type faults struct {
	mu    sync.Mutex
	count int
	n     int
	kind  fault
	done  bool // the n-th write or flush has happened
}

func (f *faults) crash() bool { return f.kind != failsBefore && f.kind != failsAfter }

// next decides which part of a write or flush happens, and which error it returns.
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

type fault string

const (
	failsBefore fault = "fails, nothing written"
	failsAfter  fault = "fails, all written"
	crashBefore fault = "crash before"
	crashInside fault = "crash with half of it written"
	crashAfter  fault = "crash after"
)

var errFault = errors.New("injected fault")

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

// volatileFile is a disk with a cache that loses unflushed writes in a power cut.
type volatileFile struct {
	diskFile
	unflushed []before
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

// powerCut loses all unflushed writes, or only the oldest: a disk may write its cache
// in any order.
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

// before is the content that a write replaced.
type before struct {
	at      int64
	content []byte
}

// TestCommit_faults: after any failed write or flush, and after a crash at any
// of them, every reader sees the same volume group, either the old or the new
// one.
func TestCommit_faults(t *testing.T) {
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
	// Texts of several sectors; the next text wraps.
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
		// The process survives: every reader must see the result of Commit.
		want := before.Seqno
		if err == nil {
			want++
		}
		if got := read(t, s); got.Seqno != want {
			t.Errorf("%s: Commit says %v, Read seqno %d", name, err, got.Seqno)
		}
	}
	// Another process reads, or this process after a restart.
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
		t.Errorf("%s: Commit succeeded, but the old volume group is on disk", name)
	case err != nil && isNew && !f.crash():
		t.Errorf("%s: Commit failed with %v, but the new volume group is on disk", name, err)
	}
	// The next commit leaves all areas equal.
	edit(t, other, func(vg *VG) error { return vg.Replace(vg.LV("old").Clone()) })
	for i, path := range disks {
		if header(t, path).committed.crc != other.vg.source.crc {
			t.Errorf("%s: area %d, with seqno %d after the fault, is still old after the next commit", name, i, disksSee[i])
		}
	}
	if p := other.Problems(); len(p) > 0 {
		t.Errorf("%s: after the next commit: %v", name, p)
	}
	return f.done
}

// TestCommit_oneAreaFails: an area that fails at the last step is a problem,
// and the commit succeeds.
func TestCommit_oneAreaFails(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 2, diskSize)
	s := createVG(t, h, disks, CreateOptions{})
	next := read(t, s).Clone()
	if err := next.Add(linearLV("new", 1, 0, 1)); err != nil {
		t.Fatal(err)
	}
	// The text and the precommit take four steps of the disk; the fifth is the commit.
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
		t.Errorf("the area was not updated: %v", p)
	}
}

// tracedFile logs the writes and flushes of a disk, and can fail to flush.
type tracedFile struct {
	diskFile
	name string
	log  *[]string
	fail error
}

func (f *tracedFile) WriteAt(b []byte, at int64) (int, error) {
	*f.log = append(*f.log, "write "+f.name)
	return f.diskFile.WriteAt(b, at)
}

func (f *tracedFile) Sync() error {
	*f.log = append(*f.log, "flush "+f.name)
	return errors.Join(f.fail, f.diskFile.Sync())
}

// TestCommit_flushesWritten: Commit flushes a disk without a metadata area
// before the volume group changes.
func TestCommit_flushesWritten(t *testing.T) {
	h := testHost(t)
	disks := blankDisks(t, 2, diskSize)
	s := createVG(t, h, disks, CreateOptions{})
	vg := read(t, s)
	var log []string
	traced := map[string]*tracedFile{}
	for name, pv := range map[string]*PV{"meta": vg.PVs[0], "data": vg.PVs[1]} {
		d := s.deviceOf(pv)
		traced[name] = &tracedFile{diskFile: d.file, name: name, log: &log}
		d.file = traced[name]
	}
	areas := slices.DeleteFunc(slices.Clone(s.areas), func(a *metadataArea) bool { return a.dev != s.deviceOf(vg.PVs[0]) })
	commit := func(name string, written ...*PV) error {
		next := vg.Clone()
		if err := addLV(name, 0, Extents(len(next.LVs)), 1)(next); err != nil {
			t.Fatal(err)
		}
		log = nil
		err := s.commit(next, areas, written...)
		if err == nil {
			vg = next
		}
		return err
	}
	own := []string{"write meta", "write meta", "flush meta", "write meta", "flush meta"}
	for _, c := range []struct {
		name    string
		written []*PV
		want    []string
	}{
		{"none", nil, own},
		{"metadata", vg.PVs[:1], own},
		{"data", []*PV{vg.PVs[1], vg.PVs[0], vg.PVs[1]}, slices.Insert(slices.Clone(own), 3, "flush data")},
	} {
		if err := commit(c.name, c.written...); err != nil || !slices.Equal(log, c.want) {
			t.Errorf("%s: %v, %q, want %q", c.name, err, log, c.want)
		}
	}
	seqno := vg.Seqno
	traced["data"].fail = errFault
	if err := commit("lost", vg.PVs[1]); !errors.Is(err, errFault) {
		t.Errorf("the data was not flushed: %v", err)
	}
	if err := commit("gone", &PV{Device: "/does/not/exist"}); !errors.Is(err, ErrMissingPV) || len(log) != 0 {
		t.Errorf("a device that does not exist: %v, %q", err, log)
	}
	if now := read(t, openVG(t, h, disks)); now.Seqno != seqno || now.LV("lost") != nil {
		t.Errorf("a failed commit is on disk: seqno %d, want %d", now.Seqno, seqno)
	}
}

// TestCommit_errors: a commit that is invalid, canceled or not based on the
// last Read writes nothing.
func TestCommit_errors(t *testing.T) {
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
	// Another writer wrote without a lock, or the caller did not hold the lock.
	edit(t, openVG(t, h, disks), addLV("x", 0, 0, 1))
	if err := s.Commit(context.Background(), first.Clone()); !errors.Is(err, ErrConflict) {
		t.Errorf("commit after another writer: %v", err)
	}
}

// TestCommit_ringWraps: commits remain readable while their texts wrap around
// the metadata area.
func TestCommit_ringWraps(t *testing.T) {
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
		t.Errorf("only %d texts wrapped around: this test shows nothing", wrapped)
	}
}

// TestCommit_metadataFull: a text that does not fit is refused, and removing a
// logical volume makes room.
func TestCommit_metadataFull(t *testing.T) {
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
