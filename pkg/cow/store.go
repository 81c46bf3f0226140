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

// Store reads a store on a device. The kernel may use the store meanwhile: the
// result of a call is then the state at some moment during the call. A
// device-mapper device cannot be removed while its Store is open, and reads block
// while the device is suspended.
//
// The methods of Store may be called concurrently.
type Store struct {
	path string
	file source
}

// source is a device, a regular file, or memory.
type source interface {
	io.ReaderAt
	io.Seeker
	io.Closer
}

const (
	// readBytes is the longest read, which bounds the memory. No area of a store
	// that LVM2 makes is longer.
	readBytes = MaxChunk
	// headerRead is a multiple of the block size of every disk.
	headerRead = 4 * size.KiB
)

// Open opens the store on the block device or regular file at path for reading. The
// caller must Close it. Open succeeds for a lost snapshot.
//
// Errors: the errors of Header.
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

// NewStore returns the store in the first length bytes of from. It reads into memory
// that O_DIRECT accepts. path is the name of the store in errors. Close does not
// close from.
func NewStore(path string, from io.ReaderAt, length size.Bytes) *Store {
	return &Store{path, section{io.NewSectionReader(from, 0, int64(length))}}
}

// section is a part of a file that the caller of NewStore closes.
type section struct{ *io.SectionReader }

func (section) Close() error { return nil }

// openDirect opens a device with O_DIRECT. The kernel writes to a store past the
// page cache, so a cached page may be stale. Regular files are written through the
// page cache, and some file systems do not support O_DIRECT.
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

// Close closes the device that Open opened.
func (s *Store) Close() error { return s.file.Close() }

// Header reads the header. The header of a lost snapshot is no error.
//
// Errors: ErrFresh if the store was zeroed and never used; ErrNotStore if the device
// has other content; ErrDamaged if the kernel cannot have written the header.
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
	case errors.Is(err, io.EOF):
		return Header{}, fmt.Errorf("%w: it has only %d bytes", ErrNotStore, n)
	}
	return Header{}, err
}

// Empty reports whether the store lists no chunk, by its first area alone. It does not
// read the header, whose chunk size the caller must know. The kernel flushes the header
// before it lists the first chunk. So a store without a header that is not empty has lost
// its header.
func (s *Store) Empty(chunk size.Bytes) (bool, error) {
	buf, free, err := directio.Buffer(headerRead)
	if err != nil {
		return false, err
	}
	defer free()
	if _, err := s.file.ReadAt(buf[:headerRead], int64(chunk)); err != nil {
		return false, fmt.Errorf("read first area of snapshot store %s: %w", s.path, err)
	}
	return parseException(buf).Store == 0, nil
}

// Exceptions yields the store's exceptions in the order in which the kernel
// recorded them. It uses MaxChunk bytes of memory, however many exceptions there
// are. It does not check that each chunk is listed only once.
//
// If the first overwrite of a chunk of the origin was complete before the call,
// Exceptions yields its exception: the kernel starts the write only after the
// exception is on the disk. In a store in use, an exception was allocated before a
// status was read exactly if its Store is below the status's used sectors / chunk.
//
// Errors come as the last element: ErrInvalid if the snapshot is lost; ErrDamaged;
// the errors of Header; an error of a read; the cause of ctx's end, which Exceptions
// checks between reads.
func (s *Store) Exceptions(ctx context.Context) iter.Seq2[Exception, error] {
	return s.ExceptionsAfter(ctx, 0)
}

// ExceptionsAfter is Exceptions without the first n exceptions. The kernel only
// appends exceptions, so a caller can read a long store in steps, and later read
// only the new exceptions. n must not be greater than the number of exceptions.
func (s *Store) ExceptionsAfter(ctx context.Context, n uint64) iter.Seq2[Exception, error] {
	return func(yield func(Exception, error) bool) {
		err := s.walk(ctx, n, func(e Exception) bool { return yield(e, nil) })
		if err != nil {
			yield(Exception{}, fmt.Errorf("read exceptions of snapshot store %s: %w", s.path, err))
		}
	}
}

// Used returns the used length of the store, see UsedSectors. The status of the
// snapshot has this length after the snapshot is loaded again. Used reads all
// exceptions.
//
// Errors: the errors of Exceptions.
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

// walk calls yield with each exception after the first skip exceptions, until yield
// returns false.
func (s *Store) walk(ctx context.Context, skip uint64, yield func(Exception) bool) error {
	buf, free, err := directio.Buffer(readBytes)
	if err != nil {
		return err
	}
	defer free()
	// Read the header again: the snapshot may have been lost since Open, and the
	// store does not list later changes.
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
// more is false if the list has ended or if yield has returned false.
func (s *Store) walkPart(buf []byte, at, chunk size.Bytes, yield func(Exception) bool) (more bool, err error) {
	n, err := s.file.ReadAt(buf, int64(at))
	if n < len(buf) {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: it ends before the end of its area at byte %d", ErrDamaged, at)
		}
		return false, err
	}
	// A store in use may grow at any time, so read its length after the exceptions
	// that must fit into it.
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
