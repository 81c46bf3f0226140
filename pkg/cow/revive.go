package cow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/internal/point"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Revive marks a lost snapshot as valid again, in the store on the block device at
// path. The caller must make sure that no snapshot is loaded with the store, and
// that nothing has written to the origin since the snapshot was lost.
//
// After an I/O error the store still has every acknowledged write to the snapshot.
// The kernel completes a write after its exception is on the disk, lists a chunk
// only after it has copied the chunk, and lists no more chunks after an error
// (persistent_commit_exception in dm-snap-persistent.c).
//
// Errors: the errors of Store.Header; an error if the device is in use.
func Revive(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT|unix.O_EXCL, 0)
	if err != nil {
		return fmt.Errorf("open snapshot store: %w", err)
	}
	if err := errors.Join(revive(file), file.Close()); err != nil {
		return fmt.Errorf("revive snapshot store %s: %w", path, err)
	}
	return nil
}

func revive(file *os.File) error {
	buf, free, err := directio.Buffer(headerRead)
	if err != nil {
		return err
	}
	defer free()
	if _, err := file.ReadAt(buf, 0); err != nil {
		return err
	}
	if h, err := parseHeader(buf); err != nil || h.Valid {
		return err
	}
	binary.LittleEndian.PutUint32(buf[4:], 1)
	return writeHeader("revive", file, buf)
}

// Condemn writes the header of a lost snapshot to the store on the block device at path,
// so that the kernel loads the snapshot as lost. It is for a store that has lost its
// header, which the kernel either refuses or takes for a new one. chunk is the store's
// chunk size. The caller must make sure that no snapshot is loaded with the store.
//
// Errors: an error if the device is in use.
func Condemn(path string, chunk size.Bytes) error {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT|unix.O_EXCL, 0)
	if err != nil {
		return fmt.Errorf("open snapshot store: %w", err)
	}
	if err := errors.Join(condemn(file, chunk), file.Close()); err != nil {
		return fmt.Errorf("condemn snapshot store %s: %w", path, err)
	}
	return nil
}

func condemn(file *os.File, chunk size.Bytes) error {
	buf, free, err := directio.Buffer(headerRead)
	if err != nil {
		return err
	}
	defer free()
	if _, err := file.ReadAt(buf, 0); err != nil {
		return err
	}
	copy(buf, NewHeader(chunk)[:headerBytes])
	binary.LittleEndian.PutUint32(buf[4:], 0)
	return writeHeader("condemn", file, buf)
}

// writeHeader writes a header durably. what names the call for test/points.
func writeHeader(what string, file *os.File, header []byte) error {
	if point.On {
		point.Before(what, file.Name())
		defer point.After(what, file.Name())
	}
	if _, err := file.WriteAt(header, 0); err != nil {
		return err
	}
	return os.NewSyscallError("fdatasync", unix.Fdatasync(int(file.Fd())))
}
