package cow

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// opened writes b to a file and opens it.
func opened(t *testing.T, b []byte) (*Store, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path)
	if err == nil {
		t.Cleanup(func() { s.Close() })
	}
	return s, err
}

// TestExceptions_shortestStore: exceptions and used length are right for the
// shortest store of each length around the end of an area.
func TestExceptions_shortestStore(t *testing.T) {
	for _, chunk := range []size.Bytes{4 * size.KiB, 8 * size.KiB} {
		perArea := int(chunk) / 16
		for _, n := range []int{0, 1, perArea - 1, perArea, perArea + 1, 2*perArea - 1, 2 * perArea, 2*perArea + 1} {
			want := recorded(chunk, n)
			used := UsedSectors(chunk, uint64(n))
			// The shortest file that has all of them.
			s, err := opened(t, made(chunk, int(used/chunk.Sectors()), want))
			if err != nil {
				t.Fatal(err)
			}
			if h, err := s.Header(); err != nil || h != (Header{true, 1, chunk}) {
				t.Errorf("header of chunks of %v: %+v, %v", chunk, h, err)
			}
			if got, err := collect(t.Context(), s); err != nil || !slices.Equal(got, want) {
				t.Errorf("chunks of %v: %d exceptions instead of %d, %v", chunk, len(got), n, err)
			}
			if got, err := s.Used(t.Context()); err != nil || got != used {
				t.Errorf("chunks of %v, %d exceptions: %d sectors used instead of %d, %v", chunk, n, got, used, err)
			}
		}
	}
}

// TestExceptions_tooShort: a store that lacks a part of its last chunk, a data
// chunk or the empty area, is damaged.
func TestExceptions_tooShort(t *testing.T) {
	const chunk = 4 * size.KiB
	for _, n := range []int{0, 1, 255, 256, 257, 512} {
		chunks := int(UsedSectors(chunk, uint64(n)) / chunk.Sectors())
		for _, missing := range []size.Bytes{chunk, size.SectorBytes, 1} {
			b := made(chunk, chunks, recorded(chunk, n))
			s, err := opened(t, b[:len(b)-int(missing)])
			if err != nil {
				t.Fatal(err)
			}
			if _, err := collect(t.Context(), s); !errors.Is(err, ErrDamaged) {
				t.Errorf("%d exceptions, %v missing at the end: %v", n, missing, err)
			}
		}
	}
}

// TestUsed_gaps: data chunks without an exception, which a crash of some
// kernels leaves, count as used.
func TestUsed_gaps(t *testing.T) {
	const chunk = 4 * size.KiB
	for highest, want := range map[uint64]size.Sectors{3: 4 * 8, 9: 10 * 8, 256: 257 * 8, 257: 259 * 8, 300: 301 * 8} {
		s := inMemory(made(chunk, 400, []Exception{{5, highest}, {6, 2}}))
		if got, err := s.Used(t.Context()); err != nil || got != want {
			t.Errorf("highest chunk %d: %d sectors used instead of %d, %v", highest, got, want, err)
		}
	}
}

// TestExceptions_firstEmptyEntry: the first entry without a chunk of the store
// ends the list, whatever follows.
func TestExceptions_firstEmptyEntry(t *testing.T) {
	const chunk = 4 * size.KiB
	got, err := collect(t.Context(), inMemory(made(chunk, 10, []Exception{{1, 2}, {9, 0}, {3, 1}, {4, 1 << 50}})))
	if err != nil || !slices.Equal(got, []Exception{{1, 2}}) {
		t.Errorf("%v, %v", got, err)
	}
}

// TestExceptions_damagedEntry: an entry that points to an area ends the list
// with ErrDamaged, after the exceptions before it.
func TestExceptions_damagedEntry(t *testing.T) {
	const chunk = 4 * size.KiB
	list := recorded(chunk, 300)
	list[270].Store = 258
	got, err := collect(t.Context(), inMemory(made(chunk, 400, list)))
	if !errors.Is(err, ErrDamaged) || !slices.Equal(got, list[:270]) {
		t.Errorf("%d exceptions, %v", len(got), err)
	}
	if _, err := inMemory(made(chunk, 400, list)).Used(t.Context()); !errors.Is(err, ErrDamaged) {
		t.Errorf("used: %v", err)
	}
}

// TestExceptions_bigChunk: an area that is longer than one read is read
// completely.
func TestExceptions_bigChunk(t *testing.T) {
	const chunk = 2 * size.MiB
	want := recorded(chunk, int(readBytes)/entryBytes+5)
	b := made(chunk, 2, want)
	// The data chunks are a hole.
	s, err := opened(t, b)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.path, int64(len(want)+2)*int64(chunk)); err != nil {
		t.Fatal(err)
	}
	if got, err := collect(t.Context(), s); err != nil || !slices.Equal(got, want) {
		t.Errorf("%d exceptions instead of %d, %v", len(got), len(want), err)
	}
}

// TestOpen_errors: Open reports a fresh, foreign or damaged store, and files
// that it cannot open.
func TestOpen_errors(t *testing.T) {
	for name, c := range map[string]struct {
		content []byte
		want    error
	}{
		"zeroes":      {make([]byte, 8192), ErrFresh},
		"garbage":     {[]byte(strings.Repeat("garbage!", 1024)), ErrNotStore},
		"empty":       {nil, ErrNotStore},
		"short":       {[]byte("SnAp"), ErrNotStore},
		"chunk of 24": {append(header(1, 1, 24), make([]byte, 8192)...), ErrDamaged},
	} {
		if s, err := opened(t, c.content); !errors.Is(err, c.want) || s != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such file: %v", err)
	}
	if _, err := Open(t.TempDir()); err == nil {
		t.Error("a directory was opened")
	}
}

// TestExceptions_lostWhileOpen: a snapshot that is lost after Open has no
// exceptions.
func TestExceptions_lostWhileOpen(t *testing.T) {
	b := made(4*size.KiB, 10, recorded(4*size.KiB, 3))
	s := inMemory(b)
	if _, err := collect(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	b[4] = 0
	if got, err := collect(t.Context(), s); !errors.Is(err, ErrInvalid) || len(got) > 0 {
		t.Errorf("exceptions %v, %v", got, err)
	}
	if h, err := s.Header(); err != nil || h.Valid {
		t.Errorf("header %+v, %v", h, err)
	}
}

// TestExceptions_end: the end of the context ends the list after the current
// read, and a break ends it immediately.
func TestExceptions_end(t *testing.T) {
	const chunk = 4 * size.KiB
	s := inMemory(made(chunk, 1000, recorded(chunk, 700)))
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	n := 0
	var last error
	for _, err := range s.Exceptions(ctx) {
		if last = err; err == nil {
			n++
			cancel(cause)
		}
	}
	if n != 256 || !errors.Is(last, cause) {
		t.Errorf("%d exceptions after the end of the context, %v", n, last)
	}
	n = 0
	for range s.Exceptions(t.Context()) {
		if n++; n == 300 {
			break
		}
	}
	if n != 300 {
		t.Errorf("%d exceptions up to a break", n)
	}
}

// TestOpen_pastPageCache: Open uses O_DIRECT if the file system supports it.
func TestOpen_pastPageCache(t *testing.T) {
	s, err := opened(t, made(4*size.KiB, 4, nil))
	if err != nil {
		t.Fatal(err)
	}
	f := s.file.(*os.File)
	probe, err := os.OpenFile(f.Name(), os.O_RDONLY|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		t.Skip("the file system of the temporary directory has no O_DIRECT")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer probe.Close()
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_DIRECT == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
}

// TestExceptionsAfter_skip: ExceptionsAfter yields the same exceptions as
// Exceptions, without the first n.
func TestExceptionsAfter_skip(t *testing.T) {
	const chunk = 4 * size.KiB // 256 entries in an area
	for _, n := range []int{0, 1, 255, 256, 257, 600} {
		want := recorded(chunk, n)
		s := inMemory(made(chunk, n+6, want))
		for _, skip := range []int{0, 1, 254, 255, 256, 257, 511, 512, 600} {
			if skip > n {
				continue
			}
			var got []Exception
			for e, err := range s.ExceptionsAfter(t.Context(), uint64(skip)) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, e)
			}
			if !slices.Equal(got, want[skip:]) {
				t.Errorf("of %d exceptions after the first %d: %d", n, skip, len(got))
			}
		}
	}
}
