package lvm2

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/point"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// diskFile is an open device. Tests replace it with a diskFile that fails.
type diskFile interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Close() error
}

// identity identifies a block device or a regular file. If the kernel gives a device
// number to another disk, the identity changes.
type identity struct{ dev, ino, seq uint64 }

// device is an open block device or regular file. Reads and writes bypass the page
// cache if the file system allows it: a cached page would hide lvm2's writes from
// this package, and this package's writes from lvm2.
type device struct {
	path string
	file diskFile
	id   identity
	size size.Bytes
	unit size.Bytes // logical block size, the unit of direct transfers

	waits *waits // records the transfers under way; may be nil
}

// directUnit is a multiple of the logical block size of any disk, and the alignment
// of memory for direct transfers.
const directUnit = 4 * size.KiB

func identify(info os.FileInfo) (identity, error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
	case info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0:
		return identity{dev: uint64(st.Rdev), seq: diskSequence(uint64(st.Rdev))}, nil
	case info.Mode().IsRegular():
		return identity{dev: uint64(st.Dev), ino: st.Ino}, nil
	}
	kind := ""
	switch {
	case info.IsDir():
		kind = "it is a directory, "
	case info.Mode()&os.ModeCharDevice != 0:
		kind = "it is a character device, "
	}
	return identity{}, fmt.Errorf("%sneither a block device nor a regular file: %w", kind, ErrInvalid)
}

// openDevice opens a device. With os.O_EXCL it fails if the device is mounted or a
// part of another device.
func openDevice(path string, flags int) (*device, error) {
	f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		f, err = os.OpenFile(path, flags, 0)
	}
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%s is mounted or part of another device: %w", path, ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("open device: %w", err)
	}
	d := &device{path: path, file: f, unit: size.SectorBytes}
	if err := d.measure(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("device %s: %w", path, err)
	}
	return d, nil
}

// BlockSize returns the logical block size of the block device at path.
func BlockSize(path string) (size.Bytes, error) {
	d, err := openDevice(path, os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	return d.unit, d.file.Close()
}

func (d *device) measure(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if d.id, err = identify(info); err != nil {
		return err
	}
	if info.Mode().IsRegular() {
		d.size = size.Bytes(info.Size())
		return nil
	}
	var bytes uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&bytes))); errno != 0 {
		return fmt.Errorf("read its size: %w", errno)
	}
	block, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
	if err != nil {
		return fmt.Errorf("read its block size: %w", err)
	}
	d.size, d.unit = size.Bytes(bytes), size.Bytes(block)
	return nil
}

// alignedBuffer returns n zero bytes that are aligned for direct transfers.
func alignedBuffer(n size.Bytes) []byte {
	b := make([]byte, n+directUnit)
	skip := size.Bytes(-uintptr(unsafe.Pointer(unsafe.SliceData(b)))) % directUnit
	return b[skip : skip+n : skip+n]
}

func (d *device) aligned(b []byte, offset size.Bytes) bool {
	return (size.Bytes(uintptr(unsafe.Pointer(unsafe.SliceData(b))))|offset|size.Bytes(len(b)))%d.unit == 0
}

// read returns n bytes from offset.
func (d *device) read(offset, n size.Bytes) ([]byte, error) {
	if offset > d.size || n > d.size-offset {
		return nil, fmt.Errorf("read %s: bytes %d to %d are beyond its end at %d: %w", d.path, offset, offset+n, d.size, ErrDamaged)
	}
	begin := offset - offset%d.unit
	b := alignedBuffer((offset + n).RoundUp(d.unit) - begin)
	answered := d.waits.begin(d.path)
	got, err := d.file.ReadAt(b, int64(begin))
	answered()
	// A regular file may end inside the last unit.
	if size.Bytes(got) < offset+n-begin {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read %s at byte %d: %w", d.path, offset, err)
	}
	return b[offset-begin:][:n], nil
}

// write writes b at offset. It preserves the rest of a block that b covers partly.
func (d *device) write(b []byte, offset size.Bytes) error {
	n := size.Bytes(len(b))
	if offset > d.size || n > d.size-offset {
		return fmt.Errorf("write %s: bytes %d to %d are beyond its end at %d: %w", d.path, offset, offset+n, d.size, ErrDamaged)
	}
	if !d.aligned(b, offset) {
		begin := offset - offset%d.unit
		whole, err := d.read(begin, (offset+n).RoundUp(d.unit)-begin)
		if err != nil {
			return err
		}
		copy(whole[offset-begin:], b)
		b, offset = whole, begin
	}
	if point.On {
		point.Before("write", d.path)
		defer point.After("write", d.path)
	}
	defer d.waits.begin(d.path)()
	if _, err := d.file.WriteAt(b, int64(offset)); err != nil {
		return fmt.Errorf("write %s at byte %d: %w", d.path, offset, err)
	}
	return nil
}

// sync makes earlier writes durable.
func (d *device) sync() error {
	if point.On {
		point.Before("flush", d.path)
		defer point.After("flush", d.path)
	}
	defer d.waits.begin(d.path)()
	if err := d.file.Sync(); err != nil {
		return fmt.Errorf("flush %s: %w", d.path, err)
	}
	return nil
}
