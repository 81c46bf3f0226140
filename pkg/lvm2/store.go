package lvm2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Store is an open volume group: its name and the open devices of its physical
// volumes. Its methods may be called concurrently.
type Store struct {
	host   Host
	name   string
	search Search

	access int // os.O_RDWR or os.O_RDONLY

	waits waits                 // for disks, while mu is held
	other waits                 // for devices that a search left behind
	seen  atomic.Pointer[state] // after the last Read or Commit; readers do not wait for disks

	mu       sync.Mutex // held while disks are read and written
	open     map[identity]*device
	used     map[ID]place // the last devices of the physical volumes
	under    map[ID]error // PV.Part of the missing physical volumes, from the last hunt
	hunt     hunt
	id       ID              // of the volume group, after it was read
	seqno    uint64          // the highest that was read or committed
	vg       *VG             // as last read or committed; nil: read it again
	areas    []*metadataArea // of the physical volumes
	problems []error
	lost     map[ID]error // of Lost, by physical volume
	buffer   []byte       // memory of the last text, for the next text
}

// state is what a Store tells about its last Read or Commit.
type state struct {
	problems []error
	lost     []error
	stale    bool
	maxText  size.Bytes
}

// publish makes the result of a Read or Commit visible. The caller holds mu.
func (s *Store) publish() {
	s.seen.Store(&state{s.problems, s.allLost(), s.isStale(), s.longest()})
}

// OpenVG finds the volume group with the name among the devices and reads it. It
// skips devices that do not exist or do not belong to the volume group. It takes a
// shared lock itself, so the caller must not hold an exclusive lock. The caller must
// Close the Store.
//
// Errors: ErrNotFound, ErrDamaged, ErrDuplicateVG, and the errors of Read.
func OpenVG(ctx context.Context, h Host, name string, devices []string) (*Store, error) {
	return openGroup(ctx, h, name, fixed(devices), os.O_RDWR)
}

// FindVG is OpenVG for the devices that search lists. The Store calls search again
// whenever it has to find the volume group again.
func FindVG(ctx context.Context, h Host, name string, search Search) (*Store, error) {
	return openGroup(ctx, h, name, search, os.O_RDWR)
}

// FindVGReadOnly is FindVG for a caller that only reads: Commit fails. It opens no
// device for writing, because udev probes a device again when a writer closes it,
// even if nothing was written.
func FindVGReadOnly(ctx context.Context, h Host, name string, search Search) (*Store, error) {
	return openGroup(ctx, h, name, search, os.O_RDONLY)
}

func openGroup(ctx context.Context, h Host, name string, search Search, access int) (*Store, error) {
	lock, err := h.LockVG(ctx, name, Shared)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	s := &Store{host: h, name: name, search: search, access: access, open: map[identity]*device{}, used: map[ID]place{}, lost: map[ID]error{}}
	if _, err := s.Read(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close closes the devices. The Store opens them again if it is used again.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.close()
}

func (s *Store) close() error {
	var errs []error
	for id, d := range s.open {
		errs = append(errs, d.file.Close())
		delete(s.open, id)
	}
	s.vg, s.areas = nil, nil
	return errors.Join(errs...)
}

// MaxText returns the longest metadata text for which the smallest metadata area in
// use has room. It returns 0 if the volume group is not read.
func (s *Store) MaxText() size.Bytes { return s.last().maxText }

// last returns the state after the last Read or Commit.
func (s *Store) last() *state {
	if last := s.seen.Load(); last != nil {
		return last
	}
	return &state{}
}

func (s *Store) longest() (most size.Bytes) {
	for _, a := range s.areas {
		if n := a.header.maxText(); a.inUse() && (most == 0 || n < most) {
			most = n
		}
	}
	return most
}

// Problems returns the problems that did not make the last Read or Commit fail: a
// metadata area that is damaged or out of date while others are good, or a missing
// device. The caller must not change the slice.
func (s *Store) Problems() []error { return s.last().problems }

// Read returns the volume group as it is on disk. The caller must hold the volume
// group's lock, shared or exclusive, and must not change the VG, but a Clone. Read
// returns the VG of the last Read or Commit if nothing has changed since; that costs
// one small read per metadata area. A volume group with a missing physical volume
// can be read.
//
// Errors: ErrNotFound (removed or renamed), ErrDamaged, ErrUnknownStatus,
// ErrDuplicatePV, ErrDuplicateVG, ErrExported, ErrShared, ErrForeignSystemID.
func (s *Store) Read(ctx context.Context) (*VG, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("read volume group %s: %w", s.name, context.Cause(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.publish()
	if s.vg != nil && s.complete() && s.unchanged() == nil {
		return s.vg, nil
	}
	if err := s.load(); err != nil {
		s.close()
		return nil, fmt.Errorf("read volume group %s: %w", s.name, err)
	}
	return s.vg, nil
}

func (s *Store) complete() bool {
	for _, pv := range s.vg.PVs {
		if pv.Device == "" {
			return false
		}
	}
	return true
}

// unchanged returns ErrConflict if the header of a metadata area has changed since
// the last Read or Commit.
func (s *Store) unchanged() error {
	for _, a := range s.areas {
		raw, err := a.readHeader()
		if err != nil {
			return err
		}
		if !bytes.Equal(raw, a.raw) {
			return fmt.Errorf("metadata area of %s: %w", a.dev.path, ErrConflict)
		}
	}
	return nil
}

// load reads the volume group again. It first reads the last known devices. If that
// fails, or if a physical volume is missing, it searches for the volume group, but
// less and less often while Search.Seen stays the same.
func (s *Store) load() error {
	var known []string
	for _, p := range s.used {
		known = append(known, p.path)
	}
	slices.Sort(known)
	found := false
	if len(known) > 0 {
		again := fixed(known)
		again.Named = s.search.Named
		if s.search.Others != nil { // new members are found only by the full search
			again.Others = func() ([]string, error) { return nil, nil }
		}
		if found = s.loadFrom(again) == nil; found && s.complete() {
			s.hunt = hunt{}
			return nil
		}
	}
	if s.hunt.due(s.search.Seen) || !found && s.hunt.err == nil {
		s.under = nil
		s.hunt.err = s.loadFrom(s.search)
		if s.hunt.err == nil && s.complete() {
			s.hunt = hunt{}
			return nil
		}
		found = found || s.hunt.err == nil
	}
	if found && s.hunt.err != nil { // the devices that were found are usable
		s.problems = append(s.problems, s.hunt.err)
		return nil
	}
	return s.hunt.err
}

// hunt is the repeated search for missing devices.
type hunt struct {
	seen string        // result of Search.Seen at the last search
	next time.Time     // time of the next search if Seen stays the same
	wait time.Duration // from the last search to next
	err  error         // of the last search
}

const (
	firstHunt = 2 * time.Second
	lastHunt  = time.Minute
)

// due reports whether to search again. If it returns true, the caller must search.
func (h *hunt) due(seen func() string) bool {
	if seen == nil {
		return true
	}
	switch now := seen(); {
	case now != h.seen || h.wait == 0:
		h.seen, h.wait = now, firstHunt
	case time.Now().Before(h.next):
		return false
	default:
		h.wait = min(2*h.wait, lastHunt)
	}
	h.next = time.Now().Add(h.wait)
	return true
}

// Stale reports whether a metadata area in use missed a commit. The next commit
// rewrites it.
func (s *Store) Stale() bool { return s.last().stale }

func (s *Store) isStale() bool {
	return s.vg != nil && slices.ContainsFunc(s.areas, func(a *metadataArea) bool {
		return a.inUse() && (a.err != nil || a.about.seqno < s.vg.Seqno)
	})
}

func (s *Store) loadFrom(search Search) error {
	found := &finder{used: s.used, under: s.under, waits: &s.waits, other: &s.other}
	defer found.close()
	vg, members, err := found.group(s.name, s.id, search, s.open)
	if err != nil {
		return err
	}
	if err := vg.checkUsable(s.host); err != nil {
		return err
	}
	// vgcfgrestore may lower the seqno. A newer copy that is unreadable must not
	// make an older copy valid.
	if vg.Seqno < s.seqno && (len(found.problems) > 0 || s.moved(members)) {
		return fmt.Errorf("the newest readable metadata has seqno %d, but seqno %d was read before: %w: %w", vg.Seqno, s.seqno, ErrDamaged, errors.Join(found.problems...))
	}
	s.noteLost(vg, members)
	if err := s.adopt(members); err != nil {
		return err
	}
	s.under = map[ID]error{}
	for _, pv := range vg.PVs {
		if pv.part != nil {
			s.under[pv.ID] = pv.part
		}
	}
	if s.vg == nil || !sameText(s.vg, vg) {
		s.vg = vg
	}
	s.id, s.seqno = vg.ID, vg.Seqno
	s.problems = found.problems
	for _, p := range members {
		s.used[p.label.id] = placeOf(p.device)
	}
	return nil
}

// moved reports whether a physical volume is on another device than before. That
// device may be an old copy of the disk.
func (s *Store) moved(members []*disk) bool {
	return slices.ContainsFunc(members, func(p *disk) bool {
		former, known := s.used[p.label.id]
		return known && former.id != p.device.id
	})
}

// adopt opens the members' devices and closes all others.
func (s *Store) adopt(members []*disk) error {
	keep := map[identity]bool{}
	s.areas = nil
	for _, p := range members {
		keep[p.device.id] = true
		if s.open[p.device.id] == nil {
			d, err := openWaited(p.path, s.access, &s.waits)
			if err != nil {
				return err
			}
			s.open[d.id] = d
		}
		for _, a := range p.areas {
			a.dev = s.open[p.device.id]
			a.text = nil
			s.areas = append(s.areas, a)
		}
	}
	for id, d := range s.open {
		if !keep[id] {
			d.file.Close()
			delete(s.open, id)
		}
	}
	return nil
}

// sameText reports whether a and b have the same metadata text and devices.
func sameText(a, b *VG) bool {
	if a.source != b.source || len(a.PVs) != len(b.PVs) {
		return false
	}
	for i := range a.PVs {
		if p, q := a.PVs[i], b.PVs[i]; p.Device != q.Device || p.at != q.at || fmt.Sprint(p.part) != fmt.Sprint(q.part) {
			return false
		}
	}
	return true
}
