package lvm2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Commit writes vg, with the next seqno, to every metadata area in use. vg must be a
// Clone of the last result of Read, with changes. The caller must have held the
// volume group's exclusive lock since before that Read.
//
// Commit flushes the devices of the physical volumes in written before the volume
// group changes: data that the caller wrote there is then as durable as the new
// metadata that refers to it. After success the next Read returns vg, which must not
// be changed any more. After an error vg is unchanged.
//
// The volume group changes atomically, when the first header that commits the new
// text is on disk. If writing a later header fails, Commit still succeeds: Problems
// names the area, readers recognize by its seqno that it is out of date, and the
// next commit rewrites it. If an area cannot be prepared, or if no header can be
// written, Commit restores the old headers and returns an error. After the first
// write, the end of ctx does not stop Commit.
//
// Errors: ErrUncertain if Commit has written; call Read to learn what is on disk.
// All other errors come before the first write: ErrConflict (vg is not a Clone of
// the metadata on disk), ErrInvalid (see Validate), ErrMetadataFull, ErrMissingPV,
// ErrReadOnly, and the errors of Read.
func (s *Store) Commit(ctx context.Context, vg *VG, written ...*PV) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("commit volume group %s: %w", s.name, context.Cause(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.publish()
	if err := s.commit(vg, s.areas, written...); err != nil {
		return fmt.Errorf("commit volume group %s: %w", s.name, err)
	}
	return nil
}

func (s *Store) commit(vg *VG, areas []*metadataArea, written ...*PV) error {
	switch {
	case s.vg == nil:
		return fmt.Errorf("the volume group must be read first: %w", ErrConflict)
	case vg.ID != s.vg.ID || vg.Name != s.vg.Name || vg.Seqno != s.vg.Seqno:
		return fmt.Errorf("the change is based on seqno %d of %v, but seqno %d of %v was read last: %w", vg.Seqno, vg.ID, s.vg.Seqno, s.vg.ID, ErrConflict)
	}
	if err := vg.checkWritable(s.host); err != nil {
		return err
	}
	if err := s.unchanged(); err != nil {
		return err
	}
	w, err := newWriter(s.host, vg, areas, s.buffer)
	if err != nil {
		return err
	}
	s.buffer = w.text
	if w.data, err = s.unflushed(written, w.areas); err != nil {
		return err
	}
	late, err := w.write()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUncertain, err)
	}
	vg.Seqno++
	vg.source = w.source
	s.vg, s.id, s.seqno = vg, vg.ID, vg.Seqno
	s.areas = areas
	s.problems = late
	for _, a := range areas {
		if a.bad {
			s.problems = append(s.problems, a.err)
		}
	}
	return nil
}

// unflushed returns those devices of the physical volumes that writing to areas does
// not flush.
func (s *Store) unflushed(written []*PV, areas []*metadataArea) ([]*device, error) {
	var devices []*device
	for _, pv := range written {
		d := s.deviceOf(pv)
		switch {
		case d == nil:
			return nil, fmt.Errorf("physical volume %v: %w", pv.ID, ErrMissingPV)
		case slices.Contains(devices, d), slices.ContainsFunc(areas, func(a *metadataArea) bool { return a.dev == d }):
		default:
			devices = append(devices, d)
		}
	}
	return devices, nil
}

// deviceOf returns the open device of a physical volume, and nil if there is none.
func (s *Store) deviceOf(pv *PV) *device {
	info, err := os.Stat(pv.Device)
	if err != nil {
		return nil
	}
	id, err := identify(info)
	if err != nil {
		return nil
	}
	return s.open[id]
}

// writer is one commit.
type writer struct {
	text   []byte // with the NUL, and zeroes up to the next sector
	source source
	seqno  uint64
	areas  []*metadataArea
	slots  []slot    // place of the text in each area
	data   []*device // other devices to flush before the commit
}

// newWriter makes all checks that are possible before the first write. It writes the
// text into buffer if that is large enough.
func newWriter(h Host, vg *VG, areas []*metadataArea, buffer []byte) (*writer, error) {
	if err := vg.validateChanged(); err != nil {
		return nil, err
	}
	w := &writer{seqno: vg.Seqno + 1}
	if cap(buffer) == 0 {
		buffer = alignedBuffer(vg.source.size + 64*size.KiB)
	}
	text := vg.appendText(buffer[:0], vg.Seqno+1, Stamp{h.description(), h.hostname(), time.Now()})
	text = append(text, 0)
	length := size.Bytes(len(text))
	w.source = source{checksum(text), length}
	w.text = append(text, make([]byte, length.RoundUp(textAlign)-length)...)
	for _, a := range areas {
		if !a.inUse() {
			continue
		}
		s, err := a.header.place(length, w.source.crc)
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", a.dev.path, err)
		}
		w.areas, w.slots = append(w.areas, a), append(w.slots, s)
	}
	if len(w.areas) == 0 {
		return nil, fmt.Errorf("none of its metadata areas is in use: %w; enable them with vgchange --vgmetadatacopies all", ErrDamaged)
	}
	return w, nil
}

// write runs the steps of a commit. Each step is complete on all disks before the
// next step begins. late has an error for each area that is now out of date.
func (w *writer) write() (late []error, err error) {
	// lvm2 2.03 never reads the precommit slot; its write only proves that the
	// area can be written. So no flush is needed between the text and the slot.
	precommit := w.each(func(i int) error {
		if err := w.writeText(i); err != nil {
			return err
		}
		h := w.areas[i].header
		h.precommit = w.slots[i]
		return w.writeHeader(i, h.encode())
	})
	for _, d := range w.data {
		precommit = append(precommit, d.sync())
	}
	if err := errors.Join(precommit...); err != nil {
		return nil, errors.Join(err, w.revert())
	}
	committed := w.each(func(i int) error {
		h := w.areas[i].header
		h.committed, h.precommit = w.slots[i], slot{}
		return w.writeHeader(i, h.encode())
	})
	for i, err := range committed {
		if err != nil {
			late = append(late, fmt.Errorf("device %s has old metadata, which the next change rewrites: %w", w.areas[i].dev.path, err))
			continue
		}
		w.areas[i].header.committed, w.areas[i].header.precommit = w.slots[i], slot{}
		w.areas[i].err, w.areas[i].about.seqno = nil, w.seqno
	}
	if len(late) == len(w.areas) {
		return nil, errors.Join(errors.Join(late...), w.revert())
	}
	return late, nil
}

// revert restores the old headers.
func (w *writer) revert() error {
	return errors.Join(w.each(func(i int) error {
		h := w.areas[i].header
		h.precommit = slot{}
		return w.writeHeader(i, h.encode())
	})...)
}

func (w *writer) writeText(i int) error {
	a := w.areas[i]
	rest := w.text
	for _, part := range a.header.split(w.slots[i].offset, size.Bytes(len(w.text))) {
		if err := a.dev.write(rest[:part.size], part.offset); err != nil {
			return err
		}
		rest = rest[part.size:]
	}
	return nil
}

func (w *writer) writeHeader(i int, b []byte) error {
	a := w.areas[i]
	buffer := alignedBuffer(mdaHeaderSize)
	copy(buffer, b)
	a.raw = nil // unknown until it is on disk, so that the next Read reads it again
	if err := a.dev.write(buffer, a.where.offset); err != nil {
		return err
	}
	if err := a.dev.sync(); err != nil {
		return err
	}
	a.raw = b
	return nil
}

// each runs step for all areas in parallel, because they are usually on different
// disks.
func (w *writer) each(step func(i int) error) []error {
	errs := make([]error, len(w.areas))
	if len(w.areas) == 1 {
		errs[0] = step(0)
		return errs
	}
	var wg sync.WaitGroup
	for i := range w.areas {
		wg.Go(func() { errs[i] = step(i) })
	}
	wg.Wait()
	return errs
}
