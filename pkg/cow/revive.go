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
	return rewrite("revive", path, revive)
}

func revive(header []byte) (bool, error) {
	h, err := parseHeader(header)
	if err != nil || h.Valid {
		return false, err
	}
	binary.LittleEndian.PutUint32(header[4:], 1)
	return true, nil
}

// Condemn writes the header of a lost snapshot to the store on the block device at path,
// so that the kernel loads the snapshot as lost. It is for a store that has lost its
// header, which the kernel either refuses or takes for a new one. chunk is the store's
// chunk size. The caller must make sure that no snapshot is loaded with the store.
//
// Errors: an error if the device is in use.
func Condemn(path string, chunk size.Bytes) error {
	return rewrite("condemn", path, condemn(chunk))
}

func condemn(chunk size.Bytes) func(header []byte) (bool, error) {
	return func(header []byte) (bool, error) {
		copy(header, NewHeader(chunk)[:headerBytes])
		binary.LittleEndian.PutUint32(header[4:], 0)
		return true, nil
	}
}

// rewrite changes the beginning of the store on the block device at path durably, if change
// returns true. what names the call for messages, and for test/points.
func rewrite(what, path string, change func(header []byte) (bool, error)) error {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT|unix.O_EXCL, 0)
	if err != nil {
		return fmt.Errorf("open snapshot store: %w", err)
	}
	if err := errors.Join(rewriteIn(file, what, change), file.Close()); err != nil {
		return fmt.Errorf("%s snapshot store %s: %w", what, path, err)
	}
	return nil
}

func rewriteIn(file *os.File, what string, change func(header []byte) (bool, error)) error {
	buf, free, err := directio.Buffer(headerRead)
	if err != nil {
		return err
	}
	defer free()
	if _, err := file.ReadAt(buf, 0); err != nil {
		return err
	}
	if changed, err := change(buf); err != nil || !changed {
		return err
	}
	if point.On {
		point.Before(what, file.Name())
		defer point.After(what, file.Name())
	}
	if _, err := file.WriteAt(buf, 0); err != nil {
		return err
	}
	return os.NewSyscallError("fdatasync", unix.Fdatasync(int(file.Fd())))
}
