package pool

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// formatStore makes an empty COW store of free extents, on the disk: only with
// LVM2's lock held do they stay free meanwhile. The kernel would do it when it
// first loads the snapshot; but one that is cut twice while its volume is not
// active is only ever loaded read-only.
func formatStore(v *view, ranges []lvm2.Range, chunk size.Bytes) error {
	header, zeroes := cow.NewHeader(chunk), 2*chunk // the header's chunk and an area without entries
	for _, r := range ranges {
		if zeroes == 0 {
			break
		}
		n := min(zeroes, size.Bytes(r.Count)*v.extent())
		pv := v.vg.PVs[r.PV]
		if err := v.missing(pv); err != nil {
			return err
		}
		if err := writeStart(pv.Device, v.vg.Offset(pv, r.Start).Bytes(), n, header); err != nil {
			return fmt.Errorf("%s: %w", pv.Device, err)
		}
		zeroes -= n
		header = nil
	}
	return nil
}

// writeStart zeroes a range of a device and writes what it begins with, past the page cache.
func writeStart(path string, from, length size.Bytes, start []byte) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := zeroRange(f, from, length); err != nil {
		return err
	}
	if len(start) > 0 {
		// An anonymous mapping is page-aligned, as O_DIRECT needs it.
		b, err := unix.Mmap(-1, 0, len(start), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return err
		}
		defer unix.Munmap(b)
		copy(b, start)
		if _, err := f.WriteAt(b, int64(from)); err != nil {
			return err
		}
	}
	return os.NewSyscallError("fdatasync", unix.Fdatasync(int(f.Fd())))
}
