package pool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/internal/point"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// blankStore zeroes the part of a new COW store that the kernel reads when it
// first loads the snapshot: the header's chunk and an area without entries. It
// is on the disk once the edit is committed. The extents are free still and only with LVM2's lock held do they stay
// so meanwhile. Nothing but zeroes may go there before the metadata has the
// store: after an interruption they count as wiped, if they did.
func (t *edit) blankStore(ranges []lvm2.Range, chunk size.Bytes) error {
	zeroes := 2 * chunk
	for _, r := range ranges {
		if zeroes == 0 {
			break
		}
		n := min(zeroes, size.Bytes(r.Count)*t.extent())
		err := t.writing(r, func(f *os.File, from int64) error { return zeroRange(f, size.Bytes(from), n) })
		if err != nil {
			return err
		}
		zeroes -= n
	}
	return nil
}

// signatureReach is how far from either end of a device a signature may lie that
// others know it by: RAID metadata of a BIOS lie up to 1.5 MiB before its end.
const signatureReach = 2 * size.MiB

// blankEnds zeroes both ends of extents that are added to a volume: one of them is
// the end of the device then, and nobody may find there what a former owner was.
func (t *edit) blankEnds(ranges []lvm2.Range) error {
	var total, start size.Bytes
	for _, r := range ranges {
		total += size.Bytes(r.Count) * t.extent()
	}
	head, tail := min(signatureReach, total), max(signatureReach, total)-signatureReach
	for _, r := range ranges {
		end := start + size.Bytes(r.Count)*t.extent()
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

// blankTail does what blankEnds does for what a new volume is longer than its source.
func (t *edit) blankTail(lv *lvm2.LV, source lvm2.Extents) error {
	if lv.Size() <= source {
		return nil
	}
	added, err := physicalOf(lv, rangeSet{{Start: source, Count: lv.Size() - source}})
	if err == nil {
		err = t.blankEnds(added)
	}
	if err != nil {
		return fmt.Errorf("preparing the part of volume %s/%s beyond its source: %w", t.vg.Name, lv.Name, err)
	}
	return nil
}

// formatStore makes a header in a live store that has none, before the layer is
// frozen by the same edit. The kernel makes one when it first loads the snapshot, but a store
// that is frozen while its volume is not active is only ever loaded read-only.
func (t *edit) formatStore(l *layer) error {
	ranges, err := physical(l.lv)
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
		if binary.LittleEndian.Uint32(b) != 0 { // all that the kernel looks at
			return nil
		}
		copy(b, cow.NewHeader(l.chunk.Bytes()))
		if point.On {
			point.Before("format", f.Name())
			defer point.After("format", f.Name())
		}
		_, err = f.WriteAt(b, from)
		return err
	})
}

// writing calls f with r's physical volume, past the page cache, and with the
// offset where r begins. The commit of the edit flushes what it wrote first.
func (t *edit) writing(r lvm2.Range, f func(file *os.File, from int64) error) (err error) {
	pv := t.vg.PVs[r.PV]
	if err := t.missing(pv); err != nil {
		return err
	}
	file, err := openDisk(pv, os.O_RDWR|unix.O_DIRECT)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := f(file, int64(t.vg.Offset(pv, r.Start).Bytes())); err != nil {
		return fmt.Errorf("%s: %w", pv.Device, err)
	}
	t.written = append(t.written, pv)
	return nil
}
