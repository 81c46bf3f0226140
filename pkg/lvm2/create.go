package lvm2

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// CreateOptions are the properties of a new volume group. Zero values mean the
// defaults.
type CreateOptions struct {
	ExtentSize    size.Bytes // a power of two from 4 KiB to 1 TiB; default DefaultExtentSize
	MetadataSize  size.Bytes // least size of a metadata area; default DefaultMetadataSize
	DataAlignment size.Bytes // a multiple of 4 KiB up to 1 GiB; default DefaultDataAlignment
	Tags          []string
	SystemID      string // default: the host's
	Namesake      bool   // allow another volume group with the same name on this machine
}

// Defaults of CreateOptions. A metadata area holds two texts, and a text has about
// 900 bytes for each logical volume: 20 MiB have room for 10,000 logical volumes.
const (
	DefaultExtentSize    = 4 * size.MiB
	DefaultMetadataSize  = 20 * size.MiB
	DefaultDataAlignment = size.MiB
)

// metadataStart is the offset of the first metadata area: after the sectors that may
// have the label.
const metadataStart = 4 * size.KiB

func (o *CreateOptions) complete() error {
	if o.ExtentSize == 0 {
		o.ExtentSize = DefaultExtentSize
	}
	if o.MetadataSize == 0 {
		o.MetadataSize = DefaultMetadataSize
	}
	if o.DataAlignment == 0 {
		o.DataAlignment = DefaultDataAlignment
	}
	switch {
	case o.ExtentSize < 4*size.KiB || o.ExtentSize > size.TiB || o.ExtentSize&(o.ExtentSize-1) != 0:
		return fmt.Errorf("extent size %v is not a power of two from 4KiB to 1TiB: %w", o.ExtentSize, ErrInvalid)
	case o.MetadataSize > size.GiB:
		return fmt.Errorf("metadata size %v is more than 1GiB: %w", o.MetadataSize, ErrInvalid)
	case o.DataAlignment%(4*size.KiB) != 0 || o.DataAlignment > size.GiB:
		return fmt.Errorf("data alignment %v is not a multiple of 4KiB up to 1GiB: %w", o.DataAlignment, ErrInvalid)
	}
	for _, tag := range o.Tags {
		if err := CheckTag(tag); err != nil {
			return err
		}
	}
	return nil
}

// CreateVG makes the devices physical volumes and creates a volume group on them. It
// takes lvm2's locks itself; the caller must hold none.
//
// CreateVG checks all devices before it writes to one. A device must be blank (see
// Signature), or have only the remains of an interrupted CreateVG or Extend. It must
// not be in use, must have room for an extent, and must be listed once.
//
// The volume group comes into existence atomically. An interruption before that
// moment leaves physical volumes without a volume group; the same call with the same
// devices then succeeds.
//
// Errors: ErrExists (the name), ErrInvalid, ErrNotBlank, ErrInUse, ErrPartitioned,
// ErrWriteProtected, ErrTooSmall, ErrBlockSize.
func CreateVG(ctx context.Context, h Host, name string, devices []string, o CreateOptions) error {
	if err := create(ctx, h, name, devices, o); err != nil {
		return fmt.Errorf("create volume group %s: %w", name, err)
	}
	return nil
}

func create(ctx context.Context, h Host, name string, devices []string, o CreateOptions) error {
	if o.SystemID == "" {
		o.SystemID = h.SystemID
	}
	if err := errors.Join(CheckVGName(name), o.complete()); err != nil {
		return err
	}
	unlock, err := h.lockBoth(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	vg := newVG(name, uint64(o.ExtentSize.Sectors()), nil, o.Tags, o.SystemID)
	fresh, err := prepare(devices, vg, o.MetadataSize, o.DataAlignment)
	defer fresh.close()
	if err != nil {
		return err
	}
	if err := vg.checkUsable(h); err != nil {
		return err
	}
	if !o.Namesake {
		if err := checkNameFree(ctx, name); err != nil {
			return err
		}
	}
	return h.write(ctx, vg, fresh)
}

// write creates the prepared volume group.
func (h Host) write(ctx context.Context, vg *VG, fresh *freshDisks) error {
	w, err := newWriter(h, vg, fresh.areas, nil)
	if err != nil {
		return err
	}
	if err := h.label(ctx, fresh); err != nil {
		return err
	}
	// The next commit rewrites a copy that failed after the first copy.
	if _, err := w.write(); err != nil {
		return err
	}
	return h.dropHints()
}

// lockBoth takes the locks under which lvm2 creates and extends volume groups.
func (h Host) lockBoth(ctx context.Context, name string) (unlock func(), err error) {
	global, err := h.LockGlobal(ctx, Exclusive)
	if err != nil {
		return nil, err
	}
	own, err := h.LockVG(ctx, name, Exclusive)
	if err != nil {
		global.Unlock()
		return nil, err
	}
	return func() {
		own.Unlock()
		global.Unlock()
	}, nil
}

// Extend makes the devices physical volumes and adds them to the volume group. The
// new metadata areas are as large as the existing ones. Extend takes lvm2's locks
// itself; the caller must hold none. The devices must fulfil the conditions of
// CreateVG.
//
// Errors: the errors of CreateVG and Commit.
func (s *Store) Extend(ctx context.Context, devices []string) error {
	if err := s.extend(ctx, devices); err != nil {
		return fmt.Errorf("extend volume group %s: %w", s.name, err)
	}
	return nil
}

func (s *Store) extend(ctx context.Context, devices []string) error {
	unlock, err := s.host.lockBoth(ctx, s.name)
	if err != nil {
		return err
	}
	defer unlock()
	current, err := s.Read(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := current.checkWritable(s.host); err != nil {
		return err
	}
	next := current.Clone()
	metadataSize := DefaultMetadataSize
	for _, a := range s.areas {
		if a.inUse() {
			metadataSize = a.where.size
		}
	}
	fresh, err := prepare(devices, next, metadataSize, DefaultDataAlignment)
	defer fresh.close()
	if err != nil {
		return err
	}
	given := s.search.Devices
	if given != nil {
		s.search.Devices = func() ([]string, error) {
			all, err := given()
			return append(slices.Clone(all), devices...), err
		}
	}
	return s.join(ctx, next, fresh)
}

// join commits the prepared volume group.
func (s *Store) join(ctx context.Context, next *VG, fresh *freshDisks) error {
	areas := append(slices.Clone(s.areas), fresh.areas...)
	if _, err := newWriter(s.host, next, areas, nil); err != nil {
		return err
	}
	if err := s.host.label(ctx, fresh); err != nil {
		return err
	}
	if err := s.commit(next, areas); err != nil {
		return err
	}
	// The new devices are open exclusively, so device-mapper could not use them. The
	// next Read opens them again, without O_EXCL.
	s.vg, s.areas = nil, nil
	return s.host.dropHints()
}
