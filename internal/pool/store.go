package pool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/internal/point"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// blankStore zeroes the part of a new COW store that the kernel reads when it first loads the
// snapshot: the header's chunk and an empty area. The zeroes are durable when the edit is
// committed. The extents are still free, and only LVM2's lock keeps them free. blankStore
// writes only zeroes, because wiped extents still count as wiped after an interruption.
func (t *edit) blankStore(ranges []lvm2.Range, chunk size.Bytes) error {
	zeroes := 2 * chunk
	for _, r := range ranges {
		if zeroes == 0 {
			break
		}
		n := min(zeroes, size.Bytes(r.Count)*t.ExtentSize())
		err := t.writing(r, func(f *os.File, from int64) error { return zeroRange(f, size.Bytes(from), n) })
		if err != nil {
			return err
		}
		zeroes -= n
	}
	return nil
}

// signatureReach is the largest distance of a signature from either end of a device. RAID
// metadata of a BIOS lies up to 1.5 MiB before the end.
const signatureReach = 2 * size.MiB

// blankEnds zeroes both ends of extents that are added to a volume. One of them becomes the
// end of the device, where a program could find a former owner's signature.
func (t *edit) blankEnds(ranges []lvm2.Range) error {
	var total, start size.Bytes
	for _, r := range ranges {
		total += size.Bytes(r.Count) * t.ExtentSize()
	}
	head, tail := min(signatureReach, total), max(signatureReach, total)-signatureReach
	for _, r := range ranges {
		end := start + size.Bytes(r.Count)*t.ExtentSize()
		for _, part := range [][2]size.Bytes{{start, min(end, head)}, {max(start, head, tail), end}} {
			if part[0] >= part[1] {
				continue
			}
			if err := t.writing(r, func(f *os.File, from int64) error {
				return zeroRange(f, size.Bytes(from)+part[0]-start, part[1]-part[0])
			}); err != nil {
				return err
			}
		}
		start = end
	}
	return nil
}

// blankTail is blankEnds for the part of a new volume beyond the end of its source. source is
// the size of the source in extents.
func (t *edit) blankTail(lv *lvm2.LV, source lvm2.Extents) error {
	if lv.Size() <= source {
		return nil
	}
	added, err := catalog.PhysicalOf(lv, catalog.RangeSet{{Start: source, Count: lv.Size() - source}})
	if err == nil {
		err = t.blankEnds(added)
	}
	if err != nil {
		return fmt.Errorf("preparing the part of volume %s/%s beyond its source: %w", t.VG.Name, lv.Name, err)
	}
	return nil
}

// formatStore writes a header to a live store without one, before the same edit freezes the
// layer. The kernel writes the header when it first loads the snapshot writable. A store that
// is frozen while its volume is inactive would only ever be loaded read-only.
func (t *edit) formatStore(l *catalog.Layer) error {
	ranges, err := catalog.Physical(l.LV)
	if err != nil {
		return err
	}
	return t.writing(ranges[0], func(f *os.File, from int64) error {
		b, free, err := directio.Buffer(cow.MinChunk)
		if err != nil {
			return err
		}
		defer free()
		if _, err := f.ReadAt(b, from); err != nil {
			return err
		}
		if binary.LittleEndian.Uint32(b) != 0 { // the kernel checks only this field
			return nil
		}
		// A store that lists chunks has lost its header. Without one, its layer counts as lost.
		on := onDisks{view: t.view()}
		defer on.close()
		store, err := on.store(l.LV, t.BytesOf(l.LV))
		if err != nil {
			return err
		}
		if empty, err := store.Empty(l.Chunk.Bytes()); err != nil || !empty {
			return err
		}
		copy(b, cow.NewHeader(l.Chunk.Bytes()))
		if point.On {
			point.Before("format", f.Name())
			defer point.After("format", f.Name())
		}
		_, err = f.WriteAt(b, from)
		return err
	})
}

// writing calls f with the disk of r, opened with O_DIRECT, and with the byte offset of r. The
// commit of the edit flushes the disk before it writes the metadata.
func (t *edit) writing(r lvm2.Range, f func(file *os.File, from int64) error) (err error) {
	pv := t.VG.PVs[r.PV]
	if err := t.Missing(pv); err != nil {
		return err
	}
	file, err := openDisk(pv, os.O_RDWR|unix.O_DIRECT)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := f(file, int64(t.VG.Offset(pv, r.Start).Bytes())); err != nil {
		return fmt.Errorf("%s: %w", pv.Device, err)
	}
	t.written = append(t.written, pv)
	return nil
}
