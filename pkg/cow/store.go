package cow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Store reads a store on a device. The kernel may be using the store: what is
// read is then as of some moment during the call. Its methods may be called
// concurrently. A device-mapper device cannot be removed while a Store of it is
// open, and reading it waits while it is suspended.
type Store struct {
	path string
	file source
}

// source is the device; in tests also memory.
type source interface {
	io.ReaderAt
	io.Seeker
	io.Closer
}

const (
	// readBytes bounds a transfer, and with it the memory: no area that LVM2
	// makes is longer.
	readBytes = MaxChunk
	// headerRead is a multiple of every disk's block size.
	headerRead = 4 * size.KiB
)

// Open opens the store on a block device for reading; a regular file in its
// place will do. Errors are those of Header.
func Open(path string) (*Store, error) {
	file, err := openDirect(path)
	if err != nil {
		return nil, fmt.Errorf("open snapshot store: %w", err)
	}
	s := &Store{path, file}
	if _, err := s.Header(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// NewStore returns the store in the first length bytes of from, which it reads as
// Open reads a device: from memory that O_DIRECT accepts. path is for messages.
func NewStore(path string, from io.ReaderAt, length size.Bytes) *Store {
	return &Store{path, section{io.NewSectionReader(from, 0, int64(length))}}
}

// section is a part of what somebody else opened, and closes.
type section struct{ *io.SectionReader }

func (section) Close() error { return nil }

// openDirect opens a device past the page cache: the kernel's writes to a store
// do not go through it, so that a cached page shows a store as it once was.
// Nobody but the page cache writes regular files, and some file systems have
// nothing else.
func openDirect(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if !errors.Is(err, unix.EINVAL) {
		return file, err
	}
	if info, statErr := os.Stat(path); statErr != nil || !info.Mode().IsRegular() {
		return nil, err
	}
	return os.Open(path)
}

// Close closes the device.
func (s *Store) Close() error { return s.file.Close() }

// Header reads the header. The error is ErrFresh if the store was zeroed and
// never used, ErrNotStore if something else is there, ErrDamaged if the kernel
// could not have written it. That a header says that the snapshot is lost is no
// error.
func (s *Store) Header() (Header, error) {
	buf, free, err := directio.Buffer(headerRead)
	if err != nil {
		return Header{}, err
	}
	defer free()
	h, err := s.header(buf)
	if err != nil {
		return Header{}, fmt.Errorf("read header of snapshot store %s: %w", s.path, err)
	}
	return h, nil
}

func (s *Store) header(buf []byte) (Header, error) {
	n, err := s.file.ReadAt(buf[:headerRead], 0)
	switch {
	case n >= headerBytes:
		return parseHeader(buf)
	case err == io.EOF:
		return Header{}, fmt.Errorf("%w: it has only %d bytes", ErrNotStore, n)
	}
	return Header{}, err
}

// Exceptions yields the store's exceptions in the order in which the kernel
// recorded them. No more than MaxChunk of memory is used, however many there are.
// A last element with an error comes after those that could be read:
// ErrInvalid if the snapshot is lost, ErrDamaged (see there), what Header returns,
// that of a read, or the cause of ctx's end, which is looked at between reads.
// That a chunk is listed once only is not checked.
//
// Every chunk of the origin whose first overwrite was complete before the call is
// among them: the kernel lets such a write begin only after its exception is on
// the disk. Of a store that is in use, those with Store below a status' used
// sectors / chunk are the ones that were allocated when that status was read.
func (s *Store) Exceptions(ctx context.Context) iter.Seq2[Exception, error] {
	return s.ExceptionsAfter(ctx, 0)
}

// ExceptionsAfter yields what Exceptions does, without the first n of them. The
// kernel only ever adds exceptions at the end, so that a long store can be read
// piece by piece and again for what is new; n must be no more than was read.
func (s *Store) ExceptionsAfter(ctx context.Context, n uint64) iter.Seq2[Exception, error] {
	return func(yield func(Exception, error) bool) {
		err := s.walk(ctx, n, func(e Exception) bool { return yield(e, nil) })
		if err != nil {
			yield(Exception{}, fmt.Errorf("read exceptions of snapshot store %s: %w", s.path, err))
		}
	}
}

// Used is the length of the store's part that is in use, see UsedSectors, and
// what the status of the snapshot says once it is loaded again. It reads all
// exceptions; errors are those of Exceptions.
func (s *Store) Used(ctx context.Context) (size.Sectors, error) {
	h, err := s.Header()
	if err != nil {
		return 0, err
	}
	highest := uint64(0)
	for e, err := range s.Exceptions(ctx) {
		if err != nil {
			return 0, err
		}
		highest = max(highest, e.Store)
	}
	return usedBelow(h.Chunk, highest), nil
}

// walk calls yield with every exception but the first skip until it returns false.
func (s *Store) walk(ctx context.Context, skip uint64, yield func(Exception) bool) error {
	buf, free, err := directio.Buffer(readBytes)
	if err != nil {
		return err
	}
	defer free()
	// Not the header as it was at Open: the snapshot may have been lost since,
	// and what changed after that is not listed.
	h, err := s.header(buf)
	if err != nil {
		return err
	}
	if !h.Valid {
		return ErrInvalid
	}
	seen := skip / entriesPerArea(h.Chunk) * entriesPerArea(h.Chunk)
	after := func(e Exception) bool {
		seen++
		return seen <= skip || yield(e)
	}
	for area := skip / entriesPerArea(h.Chunk); ; area++ {
		begin := size.Bytes(areaChunk(h.Chunk, area)) * h.Chunk
		for done := size.Bytes(0); done < h.Chunk; done += readBytes {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			part := buf[:min(readBytes, h.Chunk)]
			more, err := s.walkPart(part, begin+done, h.Chunk, after)
			if err != nil || !more {
				return err
			}
		}
	}
}

// walkPart reads a part of an area into buf and calls yield with its exceptions.
// It returns false if they, or yield, have come to an end.
func (s *Store) walkPart(buf []byte, at, chunk size.Bytes, yield func(Exception) bool) (more bool, err error) {
	n, err := s.file.ReadAt(buf, int64(at))
	if n < len(buf) {
		if err == io.EOF {
			err = fmt.Errorf("%w: it ends before its area at byte %d does", ErrDamaged, at)
		}
		return false, err
	}
	// A store in use may grow at any time, so its length is looked at after the
	// exceptions that it must have room for.
	length, err := s.file.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	for ; len(buf) > 0; buf = buf[entryBytes:] {
		e := parseException(buf)
		if e.Store == 0 {
			return false, nil
		}
		if err := e.check(chunk, size.Bytes(length)); err != nil {
			return false, err
		}
		if !yield(e) {
			return false, nil
		}
	}
	return true, nil
}
